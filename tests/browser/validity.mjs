// Hold every page of a site against the HTML standard: `node tests/browser/validity.mjs SITE` (after `npm ci` in site/). Ends with 1 where a page is not valid.
import { readFileSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { createRequire } from "node:module";

const require = createRequire(new URL("../../site/package.json", import.meta.url));
const { HtmlValidate, StaticConfigLoader } = require("html-validate");
const config = JSON.parse(readFileSync(new URL("../../site/.htmlvalidate.json", import.meta.url)));
const validator = new HtmlValidate(new StaticConfigLoader(config));

function pages(folder) {
  return readdirSync(folder).sort().flatMap((name) => {
    const path = join(folder, name);
    return statSync(path).isDirectory() ? pages(path) : path.endsWith(".html") ? [path] : [];
  });
}

let wrong = 0;
const found = pages(process.argv[2]);
for (const path of found) {
  const report = validator.validateStringSync(readFileSync(path, "utf8"), path);
  for (const result of report.results) {
    for (const message of result.messages) {
      wrong += 1;
      console.log(`${path}:${message.line}:${message.column}: ${message.message} (${message.ruleId})`);
    }
  }
}
console.log(`${found.length} pages, ${wrong} findings`);
process.exit(wrong ? 1 : 0);
