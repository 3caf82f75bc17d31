//! A GGUF writer that writes whatever it is told, sound or not.

use std::io::Write;

/// The parts of a GGUF file.
#[derive(Clone)]
pub struct GgufBytes {
    pub version: u32,
    /// Key, type number and value of each metadata entry.
    pub entries: Vec<(Vec<u8>, u32, Vec<u8>)>,
    /// Name, shape, type number and offset of each tensor.
    pub tensors: Vec<(Vec<u8>, Vec<u64>, u32, u64)>,
    /// What the header says of their numbers, where that is not the truth.
    pub entry_count: Option<u64>,
    pub tensor_count: Option<u64>,
    pub alignment: usize,
    pub data: Vec<u8>,
}

impl Default for GgufBytes {
    fn default() -> Self {
        Self {
            version: 3,
            entries: Vec::new(),
            tensors: Vec::new(),
            entry_count: None,
            tensor_count: None,
            alignment: 32,
            data: Vec::new(),
        }
    }
}

impl GgufBytes {
    /// A small sound file with a value of many types and tensors of four.
    pub fn sample() -> Self {
        let tokens: Vec<u8> = ["a", "", "zwölf"].into_iter().flat_map(string).collect();
        Self {
            entries: vec![
                (b"general.architecture".into(), 8, string("toy")),
                (b"toy.block_count".into(), 4, 2u32.to_le_bytes().into()),
                (b"toy.context_length".into(), 10, 4096u64.to_le_bytes().into()),
                (b"toy.rope.freq_base".into(), 6, 1e6f32.to_le_bytes().into()),
                (b"toy.causal".into(), 7, vec![1]),
                (b"toy.shift".into(), 5, (-3i32).to_le_bytes().into()),
                (b"tokens".into(), 9, array(8, 3, &tokens)),
                (b"token_type".into(), 9, array(5, 2, &[1, 0, 0, 0, 255, 255, 255, 255])),
                (b"scores".into(), 9, array(6, 1, &0.5f32.to_le_bytes())),
            ],
            tensors: vec![
                (b"norm.weight".into(), vec![4], 0, 0),
                (b"up.weight".into(), vec![32, 3], 3, 32),
                (b"bias".into(), vec![2], 1, 96),
                (b"odd.weight".into(), vec![256], 19, 128),
            ],
            data: (0..160).collect(),
            ..Self::default()
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header();
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(&self.data);
        bytes
    }

    pub fn header(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.entries {
            bytes.extend(string(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        for (name, shape, kind, offset) in &self.tensors {
            bytes.extend(string(name));
            bytes.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes
    }
}

/// A string with its length before it.
pub fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// An array's element type, claimed length and bytes.
pub fn array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

pub fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}
