"""What reads bundles: the standard library only, so that a copy of these modules inside a bundle can start it anywhere.

They import each other as neighbours and nothing else of the package, and speak to any Python from 3.8 on.
"""
