//! The sizes of published models, from the config.json of their checkpoints.

use super::{Family, Shape};

/// A published model whose shape can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Qwen2.5-0.5B-Instruct (arXiv 2412.15115).
    Qwen25B0_5,
    /// Qwen2.5-1.5B-Instruct.
    Qwen25B1_5,
    /// Qwen2.5-3B-Instruct.
    Qwen25B3,
    /// Gemma 3 1B (arXiv 2503.19786).
    Gemma3B1,
    /// Gemma 3 4B, the text part.
    Gemma3B4,
    /// OPT-1.3B (arXiv 2205.01068).
    Opt1B3,
}

impl Preset {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Qwen25B0_5,
        Self::Qwen25B1_5,
        Self::Qwen25B3,
        Self::Gemma3B1,
        Self::Gemma3B4,
        Self::Opt1B3,
    ];

    /// `qwen2.5-0.5b`, ...
    pub fn name(self) -> &'static str {
        match self {
            Self::Qwen25B0_5 => "qwen2.5-0.5b",
            Self::Qwen25B1_5 => "qwen2.5-1.5b",
            Self::Qwen25B3 => "qwen2.5-3b",
            Self::Gemma3B1 => "gemma3-1b",
            Self::Gemma3B4 => "gemma3-4b",
            Self::Opt1B3 => "opt-1.3b",
        }
    }

    /// The preset of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name)
    }

    /// The model's sizes.
    pub fn shape(self) -> Shape {
        let shape = match self {
            Self::Qwen25B0_5 => {
                let narrow = Shape { layers: 24, hidden: 896, ffn: 4864, ..qwen25_3b() };
                Shape { heads: 14, head_dim: 64, ..narrow }
            }
            Self::Qwen25B1_5 => {
                Shape { layers: 28, hidden: 1536, ffn: 8960, heads: 12, ..qwen25_3b() }
            }
            Self::Qwen25B3 => qwen25_3b(),
            Self::Gemma3B1 => gemma3_1b(),
            Self::Gemma3B4 => Shape {
                family: Family::Gemma3 { window: 1024, position_divisor: 8.0 },
                layers: 34,
                hidden: 2560,
                ffn: 10_240,
                heads: 8,
                kv_heads: 4,
                vocabulary: 262_208,
                context_length: 131_072,
                ..gemma3_1b()
            },
            Self::Opt1B3 => Shape {
                name: String::new(),
                family: Family::Opt,
                layers: 24,
                hidden: 2048,
                ffn: 8192,
                heads: 32,
                kv_heads: 32,
                head_dim: 64,
                vocabulary: 50_272,
                context_length: 2048,
            },
        };
        Shape { name: format!("{} (random weights)", self.name()), ..shape }
    }
}

fn qwen25_3b() -> Shape {
    Shape {
        name: String::new(),
        family: Family::Qwen2,
        layers: 36,
        hidden: 2048,
        ffn: 11_008,
        heads: 16,
        kv_heads: 2,
        head_dim: 128,
        vocabulary: 151_936,
        context_length: 32_768,
    }
}

fn gemma3_1b() -> Shape {
    Shape {
        name: String::new(),
        family: Family::Gemma3 { window: 512, position_divisor: 1.0 },
        layers: 26,
        hidden: 1152,
        ffn: 6912,
        heads: 4,
        kv_heads: 1,
        head_dim: 256,
        vocabulary: 262_144,
        context_length: 32_768,
    }
}
