//! Texts that tokenizers find hard, put together at random.

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % n as u64) as usize
    }

    /// A text of `parts` fragments.
    pub fn text(&mut self, parts: usize) -> String {
        let mut text = String::new();
        for _ in 0..parts {
            match self.below(12) {
                0..6 => text.push_str(FRAGMENTS[self.below(FRAGMENTS.len())]),
                6 => text.push_str(&" ".repeat(1 + self.below(40))),
                7 => text.push_str(&"\n".repeat(1 + self.below(35))),
                8 => text.push_str(&self.below(100_000).to_string()),
                9 => text.push(' '),
                10 => text.push(char::from(self.below(128) as u8)),
                _ => text.extend(char::from_u32(self.below(0x3_0000) as u32)),
            }
        }
        text
    }
}

#[rustfmt::skip]
const FRAGMENTS: &[&str] = &[
    "The", " the", " quick brown fox", "it's", "WE'LL", "I'd've", "'ſ", " 's", "''", " o'clock",
    "\r\n", "\r", "\t", "\t\t\t", " \n ", "\n \n", ".\n", ";\r\n\r\n", "a\nb", "\u{a0}", "\u{3000}", "\u{2028}", "\u{85}",
    "1,234.5", "½", "x²", "Ⅷ", "๓", "٣", "e\u{301}", "o\u{302}\u{323}", "\u{212b}", "\u{1112}\u{1161}\u{11ab}",
    "\u{344}", "\u{958}", "\u{1e9b}\u{323}", "你好,世界。", "日本語", "한국어", "العربية", "हिन्दी", "ไทย", "Ελληνικά", "ß",
    "👩‍👩‍👧‍👦", "🙂", "🏳️‍🌈", "\u{feff}", "\u{200b}", "▁", "▁▁▁", " ▁ ", "Ġ", "ĊĊ", "<0x41>", "<0x0A>",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "<unk>", "<bos>", "<eos>", "<pad>", "<unused7>",
    "<start_of_turn>", "<table>", "</td>", "> </", "x> </b", "<|im_", "[PAD151935]", "[multimodal]",
    "fn main() {\n    println!(\"{}\", x);\n}\n", "def f(a, b):\n\treturn a+b\n", "https://example.org/a?b=c&d=1",
    "((((", "....", "-----", "==", "!!!???", " = = Heading = = \n", "\u{0}", "\u{1f}", "\u{7f}", "\u{ad}",
];
