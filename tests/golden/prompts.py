"""What A1111's web UI makes of prompts: parts, steps, token ids and weights. `runtime/src/text` is compared with it.

    python prompts.py OUT.json

The rules are written down here anew: lark reads the grammar of edits, regular expressions read `AND` and weights, and
transformers' tokenizer with ftfy gives ids. Where the web UI's grammar is ambiguous (brackets that are none right beside an
edit), edits go first here by a priority; random prompts have no such places.

OUT.json is a list of [prompt, kind, steps, parts]: kind is "cond" or "uncond", a part is [weight, turns], a turn [last step,
number of a text]; then the texts as [text, chunks], a chunk [ids, weights] without start, end and
padding, a weight [tokens, weight].

Made with lark 1.3.1, ftfy 6.3.1, transformers 4.57.6.
"""

import json
import random
import re
import sys
import tempfile
from itertools import groupby
from pathlib import Path

import lark
from transformers import CLIPTokenizer

MERGES = Path(__file__).parents[2] / "models/assets/clip_merges.txt"

GRAMMAR = lark.Lark(
    r"""
    !start: (prompt | /[][():]/+)*
    prompt: (weighted | edit | alternation | words | SPACE)*
    !weighted: "(" prompt ")" | "(" prompt ":" prompt ")" | "[" prompt "]"
    edit.2: "[" [prompt ":"] prompt ":" [SPACE] NUMBER [SPACE] "]"
    alternation.2: "[" prompt ("|" [prompt])+ "]"
    SPACE: /\s+/
    words: /([^\\\[\]():|]|\\.)+/
    %import common.SIGNED_NUMBER -> NUMBER
    """
)


def last_step(when, steps):
    value = float(when)
    return min(steps, int(value * steps if "." in when else value))


def text_at(node, step, steps):
    if node is None:
        return ""
    if isinstance(node, lark.Token):
        return str(node)
    if node.data == "edit":
        before, after, _, when, _ = node.children
        return text_at(before if step <= last_step(when, steps) else after, step, steps)
    if node.data == "alternation":
        return text_at(node.children[(step - 1) % len(node.children)], step, steps)
    return "".join(text_at(child, step, steps) for child in node.children)


def schedule(prompt, steps):
    try:
        tree = GRAMMAR.parse(prompt)
    except lark.exceptions.LarkError:
        return [[steps, prompt]]
    ends = {steps}
    for node in tree.iter_subtrees():
        if node.data == "edit":
            ends.add(last_step(node.children[3], steps))
        elif node.data == "alternation":
            ends.update(range(1, steps + 1))
    return [[end, text_at(tree, end, steps)] for end in sorted(ends) if end >= 1]


def parts(prompt):
    number = r"[-+]?(?:[0-9]+\.?|[0-9]*\.[0-9]+)"
    for part in re.split(r"\bAND\b", prompt):
        text, weight = re.match(rf"(?s)^(.*?)(?:\s*:\s*({number}))?\s*$", part).groups()
        yield text, float(weight or 1)


TOKEN = re.compile(
    r"\\(?P<escaped>[()\[\]\\])|(?P<backslash>\\)|(?P<open>[(\[])|:\s*(?P<number>[+-]?[.0-9]+)\s*\)|(?P<close>[)\]])|(?P<words>[^\\()\[\]:]+|:)"
)


def spans(text):
    """Texts with weights; None is a break."""
    found, stack = [], []

    def close(kind, factor):
        at = max((i for i, (k, _) in enumerate(stack) if k == kind), default=None)
        if at is None:
            return False
        for span in found[stack.pop(at)[1] :]:
            span[1] *= factor
        return True

    for match in TOKEN.finditer(text):
        groups = match.groupdict()
        whole = match.group()
        if groups["escaped"] is not None:
            found.append([groups["escaped"], 1.0])
        elif groups["backslash"]:
            found.append(["", 1.0])
        elif groups["open"]:
            stack.append((whole, len(found)))
        elif groups["number"] is not None and groups["number"].count(".") < 2 and any(c.isdigit() for c in groups["number"]):
            if not close("(", float(groups["number"])):
                found.append([whole, 1.0])
        elif groups["number"] is not None:
            # The web UI fails on these numbers; they are words here, and the bracket is closed.
            found.append([whole[:-1], 1.0])
            close("(", 1.1) or found.append([")", 1.0])
        elif whole == ")":
            close("(", 1.1) or found.append([whole, 1.0])
        elif whole == "]":
            close("[", 1 / 1.1) or found.append([whole, 1.0])
        else:
            for i, words in enumerate(re.split(r"\s*\bBREAK\b\s*", whole)):
                found += [[None, 1.0]] * (i > 0) + [[words, 1.0]]
    for kind, factor in [("(", 1.1), ("[", 1 / 1.1)]:
        while close(kind, factor):
            pass
    merged = []
    for words, weight in found:
        if merged and words is not None and merged[-1][0] is not None and merged[-1][1] == weight:
            merged[-1][0] += words
        else:
            merged.append([words, weight])
    return merged or [["", 1.0]]


def chunks(text, tokenizer):
    """Chunks of (token, weight)."""
    done, chunk, comma = [], [], None
    for words, weight in spans(text):
        if words is None:
            done.append(chunk)
            chunk, comma = [], None
            continue
        for token in tokenizer(words, add_special_tokens=False)["input_ids"]:
            if token == 267:
                comma = len(chunk)
            elif len(chunk) == 75 and comma is not None and 75 - comma <= 20:
                done.append(chunk[: comma + 1])
                chunk, comma = chunk[comma + 1 :], None
            if len(chunk) == 75:
                done.append(chunk)
                chunk, comma = [], None
            chunk.append((token, weight))
    if chunk or not done:
        done.append(chunk)
    return done


def written(chunk):
    runs = groupby(round(weight, 6) for _, weight in chunk)
    return [[token for token, _ in chunk], [[len(list(run)), weight] for weight, run in runs]]


WRITTEN = [
    *["", " ", "\n", "a cat", "masterpiece, best quality, 1girl", "a photo of an astronaut riding a horse on mars"],
    *["(cat)", "((cat))", "(((cat)))", "[cat]", "[[cat]]", "(cat:1.3)", "(cat:0.5)", "(cat:0)", "(cat:-1)", "(cat: +1.5 )", "(cat:.5)"],
    *["(a (b:1.5) c)", "((cat:1.1):1.2)", "(a [b] c)", "[a (b) c]", "(a:1.2:1.3)", "[a:1.2]", "(cat:)", "(cat:x)", "(a,b:0)"],
    *["a (((house:1.3)) [on] a (hill:0.5), sun, (((sky)))."],
    *["(cat", "cat)", "((cat)", "(cat))", "[cat", "cat]", "([cat)", "(cat]", "( [ ) ]", "(cat:1.3", "cat:1.3)", "()", "[]", "(:1.2)", "((()))"],
    *[r"a\(b\)", r"\(", r"\\", r"\[a\]", r"(a\):1.2)", r"\\\x", r"tail \ ", "tail \\", "line \\\nbreak"],
    *["a BREAK b", "BREAK a", "a BREAK BREAK b", "a BREAK", "BREAKFAST un_BREAK", "a\nBREAK\nb", "abreak BREAK", "(a) BREAK [b]"],
    *["a [b:3]", "a [b: 3]", "a [b:3 ]", "a [b:.5] c", "[a:b:0.5]", "[a::4]", "[::4]", "[:4]", "[a:b:0]", "[a:b:-2]", "[a:b:99]", "[a:b:1.0]"],
    *["[a:b:+3]", "[a:b:1e0]", "[a:b:5.]", "[a:b:0.33]", "[a:b:.25]", "[a:b:3b]", "[a:b:c:3]", "[a:b]", "a:b:3", "[a:b:]", "[a:b:x]", "[a:b: ]"],
    *["a[b:[c:d:2]:1]e", "[a:[b:c:5]:2]", "[[a:b:3]:c:6]", "[(a:2):3]", "[(a:1.2):(b:0.8):.5]", "([a:b:3]:1.4)", "([a:b:3]) c", "a [[[b]]:2]"],
    *["((a][:b:c [d:3]", "a [unbalanced", "a [b:3", "a b:3]", "[a (b:3] c", "(a [b:3) c", "x ) [a:b:3] ( y", r"[a\:b:3]", r"[a:b\]:3] c"],
    *["[fe|]male", "[fe|||]male", "[a|b]", "[a|b|c]", "[|a]", "[a|(b:1.1)]", "[a|[b:c:3]]", "[[a|b]|c]", "[[a|b]:c:4]", "([a|b]:1.2)", "[a | b ]"],
    *["a|b", "a|b [c:3]", "(a|b)", "[a:b|c]", "[a|b:3]", "[(a|b)]", r"a\|b", "[a|b", "a|", "|"],
    *["cat AND dog", "cat AND dog :0.5", "a:1.5", "a : -.5 ", "a:1:2", "(a:1.5)", "a AND b AND c", "AND", "SAND AND and", "a AND b:0", "a:2 AND b:-1"],
    *["[a:b:3] AND [c|d]", "[a AND b:3]", "(a AND b:1.2)", "a BREAK b AND c", "a\nAND\nb", "a AND (b:1.3):0.7", "x:1e3", "x:1.", "x:.", "[cat:dog:.5]:1.5"],
    *["café", "cafe\u0301", "猫 and 犬", "🙂", "👨‍👩‍👧‍👦 family", "Привет (мир:1.2)", "ＦＵＬＬ width", "“quoted” it’s", "ﬁne", "İstanbul", "naïve [ö:ü:3]"],
    *["&amp; &lt;b&gt;", "tab\tand\nnewline", "\u200b zero", "日本語、テスト", "ｆｕｌｌ（ｗｉｄｔｈ）", "é|ü", "[🙂|🙃]", "ÀÉ:１", "don't they'll", "hello_world-foo/bar", "it's 2024! 3.14"],
    *[", , ,", ",", "cat, " * 40, "cat " * 75, "cat " * 76, "cat " * 74 + ", " + "dog " * 10, "cat " * 60 + ", " + "dog " * 20, "cat " * 50 + ", " + "dog " * 30],
    *["cat " * 75 + ", dog", "(cat:1.2) " * 50, "a, " * 60 + "BREAK b", "[long " * 3 + "cat " * 90 + ":x:3]", "word, " * 37 + "(weighted words:1.3) and more, tail"],
    *["supercalifragilisticexpialidocious " * 12, "(a:1.1)" * 30, "masterpiece, (best quality:1.4), [lowres:highres:0.3], 1girl, [red|blue] hair, (smile:0.8) AND forest :0.6"],
]


def random_prompt(chance, depth=0):
    pieces = []
    for _ in range(chance.randint(1, 3)):
        inner = lambda: random_prompt(chance, depth + 1) if depth < 2 else chance.choice(WORDS)
        kind = chance.randrange(12)
        number = chance.choice(["1.2", "0.7", "1.05", ".9", "1"])
        when = chance.choice(["3", "7", "0.5", ".25", "0.9", "12", " 4 "])
        pieces.append(
            {
                0: lambda: f"({inner()})",
                1: lambda: f"({inner()}:{number})",
                2: lambda: f"[{inner()}]",
                3: lambda: f"[{inner()}:{inner()}:{when}]",
                4: lambda: f"[{inner()}:{when}]",
                5: lambda: f"[{inner()}::{when}]",
                6: lambda: "[" + "|".join(inner() for _ in range(chance.randint(2, 4))) + "]",
                7: lambda: chance.choice([r"\(", r"\]", "x )", "( y", "BREAK", "z:"]),
            }.get(kind, lambda: chance.choice(WORDS))()
        )
    return chance.choice([" ", ", "]).join(pieces)


WORDS = ["cat", "dog", "a red house", "sky", "forest at night", "oil painting", "smile", "café", "8k", "1girl"]


def clip_tokenizer():
    merges = MERGES.read_text(encoding="utf-8")
    pairs = [line.split(" ") for line in merges.splitlines() if not line.startswith("#version")]
    letters = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
    tokens = [*letters, *(c + "</w>" for c in letters), *("".join(pair) for pair in pairs), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocab, text = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
        text.write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in pairs) + "\n", encoding="utf-8")
        tokenizer = CLIPTokenizer(str(vocab), str(text))
    assert tokenizer.fix_text is not None, "ftfy is needed"
    return tokenizer


def main(out):
    chance = random.Random(20)
    prompts = [(prompt, "cond") for prompt in WRITTEN]
    prompts += [(prompt, "uncond") for prompt in ["a AND b", "[a:b:3]", "[a|b] blurry", "(bad:1.4)", "bad :0.5"]]
    while len(prompts) < 280:
        prompt = random_prompt(chance)
        if len(prompts) % 5 == 0:
            prompt += f" AND {random_prompt(chance, 2)}:{chance.choice(['0.5', '1.2', '-0.3'])}"
        prompts.append((prompt, "cond"))
    tokenizer = clip_tokenizer()
    texts, cases = {}, []
    for i, (prompt, kind) in enumerate(prompts):
        steps = [10, 20, 7][i % 3]
        split = list(parts(prompt)) if kind == "cond" else [(prompt, 1.0)]
        turns = [[weight, [[end, texts.setdefault(text, len(texts))] for end, text in schedule(part, steps)]] for part, weight in split]
        cases.append([prompt, kind, steps, turns])
    read = [[text, [written(chunk) for chunk in chunks(text, tokenizer)]] for text in texts]
    lines = lambda rows: ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    Path(out).write_text(f'{{"prompts": [\n{lines(cases)}\n], "texts": [\n{lines(read)}\n]}}\n', encoding="utf-8")
    print(len(cases), "prompts,", len(texts), "texts")


if __name__ == "__main__":
    main(sys.argv[1])
