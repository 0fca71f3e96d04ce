"""Bad submissions, each with one thing wrong, and how an attacker seals them."""
