#!/usr/bin/env python3
"""Makes the vectors of byte-level BPE in this folder with Hugging Face's `tokenizers` 0.22.

    python3 make_vectors.py 20B_tokenizer.json

Writes small_bpe.json (a tokenizer trained on TEXTS), small_bpe_vectors.json and 20b_vectors.json: lists of
{"text", "ids"}. All texts are written for this purpose.
"""

import json
import pathlib
import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent

TEXTS = [
    "Hello world",
    "Bob: hi\n\nAlice:",
    "a\n\n",
    "a  b",
    "你好",
    "😀",
    "\n",
    "\n\n",
    " ",
    "  ",
    "\r\n",
    "",
    # White space: runs, ends, other blanks.
    "a\n\nb\n\n\nc\n \n\td \t e\n\n",
    " leading",
    "trailing ",
    "trailing  \n",
    "one  two   three    four     five",
    "x" + " " * 23 + "y" + " " * 24 + "z" + " " * 25 + "." + " " * 50,
    "\n" + " " * 8 + "return\n" + " " * 4 + "pass\n",
    "\ttab\t\ttabs \t mixed\t ",
    "dos\r\nlines\r\n\r\nend\r",
    "no\u00a0break\u2003em\u3000ideographic \u2028line\u0085next\u200bzero\ufeffmark",
    " \u00a0 \u3000\u3000 x",
    # Contractions.
    "I'm sure it's what they've said: we'll, you'd, don't, he're",
    "IT'S WHAT THEY'VE SAID: WE'LL",
    "'s 't're've''m'lll'd '' s' 'x",
    "rock ’n’ roll isn’t",
    # Numbers.
    "0 1 12 123 1234 12345 1234567890 3.14159 1e-9 1,000,000 0x7f",
    "Ⅳ ² ½ ① ３４ ٣٤ ४५ x² H₂O 10³m",
    "a1b22c333 d4.5e6",
    # Code.
    "def fib(n):\n    if n < 2:\n        return n\n    return fib(n - 1) + fib(n - 2)\n\n\nprint(fib(10))  # 55\n",
    'fn main() {\n\tlet x: Vec<u8> = b"\\xff".to_vec();\n\tprintln!("{x:?}");\n}\n',
    '{"key": [1, 2.5, null, true], "nested": {"a": "b"}}',
    "for (i=0;i<n;++i){a[i]+=b[i]*c[i];}//done",
    "SELECT * FROM users WHERE name LIKE '%o''brien%';",
    "https://example.org/path/to?query=1&other=two#part",
    "----------------------------------------========================\n***",
    # Scripts.
    "Das Mädchen aß süße Äpfel und überquerte die Straße.",
    "Les élèves français ont reçu où l’œuvre naît; ça va?",
    "El niño comió una piña — ¿por qué? ¡Así!",
    "Жили-были старик со старухой у самого синего моря.",
    "Μια φορά κι έναν καιρό ήταν ένα μικρό κορίτσι.",
    "היה היה פעם מלך זקן.",
    "كان يا ما كان في قديم الزمان ملكٌ.",
    "एक समय की बात है, एक राजा था।",
    "从前有一座山，山里有一座庙。第１章：开始！",
    "昔々、あるところにおじいさんとおばあさんがいました。カタカナも。",
    "옛날 옛적에 호랑이가 살았습니다.",
    "กาลครั้งหนึ่งนานมาแล้ว มีพระราชาองค์หนึ่ง",
    "Ngày xửa ngày xưa, có một cô bé quàng khăn đỏ.",
    "mixed: aбγדهनา你あ가1２a б γ",
    # Normalisation form C.
    "e\u0301 a\u0300 o\u0308 n\u0303 c\u0327 A\u030a",
    "cafe\u0301 cafe\u0301s naive nai\u0308ve café",
    "q\u0323\u0307 q\u0307\u0323 s\u0323\u0307 \u1e9b\u0323",
    "\u212b \u2126 \u0344 \u0958 \ufb1d \uf900 \u2f800",
    "\u1112\u1161\u11ab\u1100\u1173\u11af 한글",
    "\u0301begins with a mark",
    "<|endoftext|>\u0301 e<|padding|>\u0301",
    # Emoji.
    "😀😃 👍🏽 👨‍👩‍👧 🇩🇪 ❤️ ☺ 1️⃣",
    "text😀text 😀 text",
    # Control characters, and code points that are assigned to nothing.
    "\x00\x01\x1b[0m\x7f\x1c \x1d",
    "\U0010ffff\ue000\U000e0001",
    # Added tokens.
    "<|endoftext|>",
    "start<|endoftext|>end <|endoftext|> \n<|endoftext|>\n\n",
    "<|endoftext|><|padding|><|endoftext|",
    "<<|endoftext|>>",
    "  <|endoftext|>  ",
    # Long words.
    "a" * 47 + " " + "a" * 48 + " " + "a" * 49 + " " + "a" * 200,
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "0123456789" * 12,
    "Taumatawhakatangihangakoauauotamateaturipukakapikimaungahoronukupokaiwhenuakitanatahu" * 3,
    "你" * 60 + "é" * 40,
]

SMALL_ONLY = [
    "one<|end|>two<|end|>more<|end|>mor",
    "cafe\u0301",
    "café",
    "the cafe\u0301 and the café",
    "nai\u0308f",
    "naïf",
    "the nai\u0308f and the naïf",
    "the\n\n\n\nthe   the    the",
]


def small_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet, min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<|end|>", "<|end|>more", "<|endoftext|>")])
    # Found in the text as it is: the decomposed form only.
    tokenizer.add_tokens([AddedToken("nai\u0308f", normalized=False)])
    # Found in the normalised text: both forms.
    tokenizer.add_tokens([AddedToken(t, normalized=True) for t in ("cafe\u0301", "  ", "    ")])
    return tokenizer


def write(name, tokenizer, texts):
    rows = [{"text": text, "ids": tokenizer.encode(text).ids} for text in texts]
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    (HERE / name).write_text(f"[\n{lines}\n]\n")


small = small_tokenizer()
(HERE / "small_bpe.json").write_text(small.to_str(pretty=False) + "\n")
write("small_bpe_vectors.json", small, TEXTS + SMALL_ONLY)
write("20b_vectors.json", Tokenizer.from_file(sys.argv[1]), TEXTS)
