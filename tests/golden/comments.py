"""What A1111's web UI leaves of prompts with comments. `runtime/src/text/comments.rs` is compared with it.

    python comments.py OUT.json

Its rule is two regular expressions, one after the other: whole lines, then what is behind a `#` within a line. Python's `re`
reads them here. OUT.json is a list of [prompt, what is left].

Made with Python 3.11.
"""

import itertools
import json
import re
import sys

WHOLE_LINE = r"(^|\n)#[^\n]*(\n|$)"
WITHIN_A_LINE = r"#[^\n]*(\n|$)"


def left(prompt):
    for comment in (WHOLE_LINE, WITHIN_A_LINE):
        prompt = re.sub(comment, "\n", prompt)
    return prompt


WRITTEN = [
    "a cat",
    "a cat # or a dog",
    "# a comment\na cat\n# another\n\n#\n#\nat night # or at noon\n",
    "a #ff0000 car",
    "a cat\r\n# a comment\r\nat night # or noon\r\nend\r\n",
    "é # é\n# 猫\n猫",
    "a <lora:b:1> # <lora:c:1>\nAND d",
]

# Every text of up to four of these, and of six of the first two.
PIECES = ["#", "\n", "a", "\r"]
SHORT = ["".join(p) for n in range(5) for p in itertools.product(PIECES, repeat=n)]
LONG = ["".join(p) for p in itertools.product("#\n", repeat=6)]

json.dump([[p, left(p)] for p in WRITTEN + SHORT + LONG], open(sys.argv[1], "w"), ensure_ascii=False, separators=(",", ":"))
