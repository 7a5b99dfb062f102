"""Token ids of changed CLIP tokenizers, by transformers: what `runtime/src/text/tokenizer.rs` compares with.

    python clip_tokenizers.py OUT.json

Three folders: CLIP's files with tokens in `added_tokens.json`, with tokens of every kind in `tokenizer_config.json`, and
one with another vocabulary that is saved as `tokenizer.json` alone. OUT.json has, for each, the files that differ from
CLIP's, and texts with their ids. The texts are such that cleaning them (ftfy) changes nothing.

Made with transformers 5.24.0, tokenizers 0.23.3.
"""

import json
import sys
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer

MERGES = Path(__file__).parents[2] / "models/assets/clip_merges.txt"
START, END = "<|startoftext|>", "<|endoftext|>"


def alphabet():
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(c) for c in [*prints, *range(256, 324)]]


def vocabulary(merges):
    tokens = [*alphabet(), *(c + "</w>" for c in alphabet()), *("".join(m) for m in merges), START, END]
    return {token: i for i, token in enumerate(tokens)}


def write(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")


def clip_files(folder, config=None):
    lines = MERGES.read_text(encoding="utf-8").splitlines()
    vocab = vocabulary([line.split(" ") for line in lines])
    write(folder, "vocab.json", json.dumps(vocab, ensure_ascii=False))
    write(folder, "merges.txt", "\n".join(["#version: 0.2", *lines]) + "\n")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    write(folder, "special_tokens_map.json", json.dumps(special))
    write(folder, "tokenizer_config.json", json.dumps({**special, **(config or {})}))


def case(folder, changed, texts):
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    ids = [[text, tokenizer(text, add_special_tokens=False).input_ids] for text in texts]
    files = {name: (folder / name).read_text(encoding="utf-8") for name in changed}
    return {"files": files, "ids": ids}


def by_added_tokens_json(folder):
    clip_files(folder)
    added = {"<cat-toy>": 49408, "my_Style": 49409, "<cat": 49410, "sks": 49411}
    write(folder, "added_tokens.json", json.dumps(added))
    texts = [
        "a <cat-toy> in my_Style",
        "A <CAT-TOY> in MY_STYLE",
        "my_styled<cat-toy>s, <cat and risks",
        "<cat-toy><cat-toy>",
        "a photo of a cat",
    ]
    return case(folder, ["added_tokens.json"], texts)


def by_tokenizer_config(folder):
    def token(content, **flags):
        kinds = dict.fromkeys(["lstrip", "normalized", "rstrip", "single_word", "special"], False)
        return {"content": content, **kinds, **flags}

    added = {
        "320": token("a</w>"),
        "49406": token(START, special=True, normalized=True),
        "49407": token(END, special=True, normalized=True),
        "49408": token("<Exact>"),
        "49409": token("<Any>", normalized=True),
        "49410": token("quux", single_word=True),
        "49411": token("<wide>", lstrip=True, rstrip=True),
        "49412": token("<extra>", special=True),
        "49413": token("Kind", normalized=True, single_word=True),
    }
    config = {"added_tokens_decoder": added, "additional_special_tokens": ["<extra>"]}
    clip_files(folder, config)
    texts = [
        "<Exact> <exact> <Any> <ANY>",
        "a quux, quuxs, quux_ and passquux quux",
        "one  <wide>  two<wide>quux",
        "an <extra> <EXTRA> KIND kindly kind",
        "it is a</w> b",
    ]
    return case(folder, ["tokenizer_config.json"], texts)


def by_tokenizer_json(folder):
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    tokenizer = CLIPTokenizer(vocab=vocabulary(merges), merges=merges)
    tokenizer.add_tokens(["<new>", "Tail_1"])
    tokenizer.save_pretrained(folder)
    names = ["tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    return case(folder, names, ["a cat, dogs and a <NEW> Tail_1", "<new>cat<new>", "cats"])


def main():
    cases = {}
    for make in by_added_tokens_json, by_tokenizer_config, by_tokenizer_json:
        with tempfile.TemporaryDirectory() as folder:
            cases[make.__name__] = make(Path(folder))
    Path(sys.argv[1]).write_text(json.dumps(cases, ensure_ascii=True, indent=1) + "\n")


main()
