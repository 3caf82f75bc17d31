//! A side network that is trained: forward from taps, backward from the gradient of its output,
//! AdamW. What it computes is defined in [`smidgen_train::SideConfig`]'s module.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use smidgen_train::{SideGate, SideHead, SideLabel, SideNetwork, SideShape};

use crate::error::{Error, Result};

/// A side network at training.
#[derive(Debug)]
pub struct SideTrainer {
    shape: SideShape,
    weight_decay: f64,
    device: Device,
    tensors: Vec<Trained>,
    steps: u64,
    /// Outputs of this step's samples that wait for their gradient.
    outputs: BTreeMap<u64, Tensor>,
}

/// All that a trainer's next step depends on beside its samples. Each list is in the order of
/// [`SideShape::tensors`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainerState {
    /// Updates so far.
    pub steps: u64,
    /// The network.
    pub numbers: Vec<f32>,
    /// AdamW's running means of gradients.
    pub means: Vec<f32>,
    /// And of their squares.
    pub squares: Vec<f32>,
}

/// A tensor of the network and what AdamW knows of it.
#[derive(Debug)]
struct Trained {
    value: Var,
    /// Sum over this step's samples.
    gradient: Option<Tensor>,
    mean: Tensor,
    square: Tensor,
}

impl SideTrainer {
    /// A trainer that begins with `network`, on `device`, by AdamW (Loshchilov and Hutter, "Decoupled
    /// weight decay regularization", 2019) with its usual decays, 0.9 and 0.999.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn new(network: &SideNetwork, weight_decay: f64, device: Device) -> Result<Self> {
        let zeros = vec![0.0; network.shape().len()];
        let state = TrainerState {
            steps: 0,
            numbers: network.numbers().to_vec(),
            means: zeros.clone(),
            squares: zeros,
        };
        Self::resume(network.shape().clone(), weight_decay, &state, device)
    }

    /// A trainer that goes on from `state`, to the same bits.
    ///
    /// # Errors
    /// A state of another size than the shape's, or not finite; [`Error::Tensor`].
    pub fn resume(
        shape: SideShape,
        weight_decay: f64,
        state: &TrainerState,
        device: Device,
    ) -> Result<Self> {
        check("numbers of the side network", &state.numbers, shape.len())?;
        check("numbers of AdamW's means", &state.means, shape.len())?;
        check("numbers of AdamW's squares", &state.squares, shape.len())?;
        let tensors = shape.tensors().map(|tensor| {
            let of = |numbers: &[f32]| {
                let numbers = &numbers[tensor.range.clone()];
                Tensor::from_slice(numbers, (tensor.rows, tensor.cols), &device)
            };
            Ok(Trained {
                value: Var::from_tensor(&of(&state.numbers)?)?,
                gradient: None,
                mean: of(&state.means)?,
                square: of(&state.squares)?,
            })
        });
        let tensors = tensors.collect::<Result<_>>()?;
        let (steps, outputs) = (state.steps, BTreeMap::new());
        Ok(Self { shape, weight_decay, device, tensors, steps, outputs })
    }

    /// What [`SideTrainer::resume`] takes. Between steps: gradients are not part of it.
    ///
    /// # Errors
    /// [`Error::NotFinite`], [`Error::Tensor`].
    pub fn state(&self) -> Result<TrainerState> {
        let list = |what, of: &dyn Fn(&Trained) -> Tensor| {
            let mut numbers = Vec::with_capacity(self.shape.len());
            for tensor in &self.tensors {
                numbers.extend(of(tensor).flatten_all()?.to_vec1::<f32>()?);
            }
            check(what, &numbers, self.shape.len())?;
            Ok::<_, Error>(numbers)
        };
        Ok(TrainerState {
            steps: self.steps,
            numbers: list("numbers of the side network", &|t| t.value.as_tensor().clone())?,
            means: list("numbers of AdamW's means", &|t| t.mean.clone())?,
            squares: list("numbers of AdamW's squares", &|t| t.square.clone())?,
        })
    }

    /// The network's output for a sample of this step, rows x hidden: E s_L. It waits for its
    /// gradient. The taps are `rows` rows for each tapped layer in order, as
    /// [`smidgen_kernels::TapFormat::encode`] makes them.
    ///
    /// # Errors
    /// Taps of another size than the network's, or not finite; [`Error::Tensor`].
    pub fn forward(&mut self, sample: u64, rows: usize, taps: &[u8]) -> Result<Vec<f32>> {
        let output = self.output(&self.decode(rows, taps)?)?;
        let numbers = output.flatten_all()?.to_vec1()?;
        self.outputs.insert(sample, output);
        Ok(numbers)
    }

    /// Adds the gradient of a sample's output, rows x hidden, to the step's.
    ///
    /// # Errors
    /// [`Error::NoOutput`], a gradient of another size or not finite, [`Error::Tensor`].
    pub fn backward(&mut self, sample: u64, gradient: &[f32]) -> Result<()> {
        let output = self.outputs.get(&sample).ok_or(Error::NoOutput { sample })?;
        check("numbers of a gradient", gradient, output.elem_count())?;
        let gradient = Tensor::from_slice(gradient, output.shape(), &self.device)?;
        let gradients = (output * gradient)?.sum_all()?.backward()?;
        self.outputs.remove(&sample);
        for tensor in &mut self.tensors {
            let Some(of_sample) = gradients.get(tensor.value.as_tensor()) else { continue };
            tensor.gradient = Some(match tensor.gradient.take() {
                Some(sum) => (sum + of_sample)?,
                None => of_sample.clone(),
            });
        }
        Ok(())
    }

    /// Both for a sample whose labels are told: its output is taken to the loss through `head`, with c
    /// and with `weight` for each target. Returns the sum of the losses. The last hidden state of a row
    /// is its last tap times what that was divided by.
    ///
    /// # Errors
    /// Those of [`SideTrainer::forward`] and of [`SideTrainer::backward`]; labels that don't fit the
    /// sample or the model.
    pub fn learn(
        &mut self,
        head: &mut SideHead,
        (sample, taps): (u64, &[u8]),
        labels: &[SideLabel],
        (scale, weight): (f32, f32),
    ) -> Result<f64> {
        let (rows, hidden) = (labels.len(), self.shape.hidden());
        if head.hidden() != hidden {
            let what = "numbers a token in the model";
            return Err(Error::Size { what, found: head.hidden(), expected: hidden });
        }
        let mut numbers = self.forward(sample, rows, taps)?;
        let format = self.shape.config().format;
        let row_bytes = format.row_bytes(hidden);
        let last = &taps[taps.len() - rows * row_bytes..];
        let mut tap = vec![0.0; hidden];
        let states = numbers.chunks_exact_mut(hidden).zip(last.chunks_exact(row_bytes));
        for ((state, bytes), label) in states.zip(labels) {
            format.decode(bytes, &mut tap);
            for (x, tap) in state.iter_mut().zip(&tap) {
                *x = label.rms * tap + scale * *x;
            }
        }
        let targets: Vec<u32> = labels.iter().map(|label| label.target).collect();
        let sum = head.loss(&mut numbers, &targets, weight).map_err(Error::Loss)?;
        numbers.iter_mut().for_each(|x| *x *= scale);
        self.backward(sample, &numbers)?;
        Ok(sum)
    }

    /// Gradients of the step so far, in the order of [`SideShape::tensors`].
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn gradients(&self) -> Result<Vec<f32>> {
        let mut numbers = Vec::with_capacity(self.shape.len());
        for tensor in &self.tensors {
            match &tensor.gradient {
                Some(gradient) => numbers.extend(gradient.flatten_all()?.to_vec1::<f32>()?),
                None => numbers.resize(numbers.len() + tensor.value.elem_count(), 0.0),
            }
        }
        Ok(numbers)
    }

    /// Ends a step: moves the network by the gradients since the last one.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn update(&mut self, rate: f64) -> Result<()> {
        const DECAYS: [f64; 2] = [0.9, 0.999];
        const EPS: f64 = 1e-8;
        self.steps += 1;
        self.outputs.clear();
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let [bias, square_bias] = DECAYS.map(|decay| 1.0 - decay.powi(steps));
        for tensor in &mut self.tensors {
            let gradient = match tensor.gradient.take() {
                Some(gradient) => gradient,
                None => tensor.value.zeros_like()?,
            };
            let blend =
                |old: &Tensor, new: &Tensor, decay: f64| (old * decay)? + (new * (1.0 - decay))?;
            tensor.mean = blend(&tensor.mean, &gradient, DECAYS[0])?;
            tensor.square = blend(&tensor.square, &gradient.sqr()?, DECAYS[1])?;
            let size = ((&tensor.square / square_bias)?.sqrt()? + EPS)?;
            let step = ((&tensor.mean * (rate / bias))? / size)?;
            let kept = (tensor.value.as_tensor() * (1.0 - rate * self.weight_decay))?;
            tensor.value.set(&(kept - step)?)?;
        }
        Ok(())
    }

    /// The network as it is, with `scale` for c.
    ///
    /// # Errors
    /// [`Error::NotFinite`], [`Error::Tensor`].
    pub fn network(&self, scale: f32) -> Result<SideNetwork> {
        let mut numbers = Vec::with_capacity(self.shape.len());
        for tensor in &self.tensors {
            numbers.extend(tensor.value.flatten_all()?.to_vec1::<f32>()?);
        }
        check("numbers of the side network", &numbers, self.shape.len())?;
        Ok(SideNetwork::new(self.shape.clone(), scale, numbers))
    }

    /// taps x rows x hidden.
    fn decode(&self, rows: usize, taps: &[u8]) -> Result<Tensor> {
        let (layers, hidden) = (self.shape.tapped().len(), self.shape.hidden());
        let format = self.shape.config().format;
        let row = format.row_bytes(hidden);
        let expected = layers.saturating_mul(rows).saturating_mul(row);
        if rows == 0 || taps.len() != expected {
            return Err(Error::Size { what: "bytes of taps", found: taps.len(), expected });
        }
        let mut numbers = vec![0.0; layers * rows * hidden];
        for (bytes, numbers) in taps.chunks_exact(row).zip(numbers.chunks_exact_mut(hidden)) {
            format.decode(bytes, numbers);
        }
        check("taps", &numbers, numbers.len())?;
        Ok(Tensor::from_vec(numbers, (layers, rows, hidden), &self.device)?)
    }

    fn output(&self, taps: &Tensor) -> Result<Tensor> {
        let rows = taps.dim(1)?;
        let config = self.shape.config();
        let mut tensors = self.tensors.iter().map(|tensor| tensor.value.as_tensor());
        let mut next = || tensors.next().expect("a tensor for each of the shape's");
        let along = |x: &Tensor, w: &Tensor| x.matmul(&w.t()?);
        let mut stream = Tensor::zeros((rows, self.shape.narrow()), DType::F32, &self.device)?;
        for layer in 0..self.shape.tapped().len() {
            let mut tap = taps.get(layer)?;
            if config.reduction > 1 {
                tap = along(&tap, next())?;
            }
            let input = match config.gate {
                SideGate::Sum => (tap + &stream)?,
                SideGate::Ladder => {
                    // m = sigmoid(10 a), 1 - m = sigmoid(-10 a).
                    let a = (next() * 10.0)?;
                    let share = |a: Tensor| ((a.neg()?.exp()? + 1.0)?).recip();
                    let own = share(a.neg()?)?;
                    (tap.broadcast_mul(&share(a)?)? + stream.broadcast_mul(&own)?)?
                }
            };
            let inside = along(&input, next())?.silu()?;
            stream = (stream + along(&inside, next())?)?;
        }
        if config.reduction > 1 {
            stream = along(&stream, next())?;
        }
        Ok(stream)
    }
}

/// Refuses numbers that are not as many as due, or not finite.
fn check(what: &'static str, numbers: &[f32], expected: usize) -> Result<()> {
    if numbers.len() != expected {
        return Err(Error::Size { what, found: numbers.len(), expected });
    }
    match numbers.iter().all(|x| x.is_finite()) {
        true => Ok(()),
        false => Err(Error::NotFinite { what }),
    }
}
