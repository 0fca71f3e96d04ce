#!/bin/sh
# What a pull request with entries goes through, the same here and in CI:
#
#     .github/check-entries.sh origin/main              # the checkout that you are in
#     .github/check-entries.sh main ../their-checkout preview
#
# Exit code 1: some rule is broken, and every problem is listed. The preview is built only of what passed.
set -eu
base=$1
checkout=${2:-.}
out=${3:-_preview}
jouleboard check --base "$base" "$checkout"
jouleboard preview --base "$base" --out "$out" "$checkout"
