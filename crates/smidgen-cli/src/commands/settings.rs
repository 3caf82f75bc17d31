//! The settings of a run, from the flags of `train` and `plan`.

use std::path::PathBuf;

use clap::ValueEnum;
use smidgen::{
    AdapterStart, Base, Error, InitLoraWeights, LayerOrder, Lcsb, Length, LoraConfig, LossOn,
    Method, Mezo, OptimizerConfig, Rates, RemoteLink, Shape, Side, SideConfig, SideGate, SidePace,
    SpoolFormat, TapFormat, TapNoise, TargetModules, TrainConfig, fits_ahead, plan_ahead,
};

use crate::args::{
    InitLora, LayerOrderName, LoraArgs, LossOnName, MethodArgs, MethodName, OptimizerArgs,
    OptimizerName, Schedule, SideArgs, SideGateName, SpoolType, TrainArgs,
};
use crate::error::{Failure, Result};
use crate::rates;

/// Tokens of the shortest sequence that teaches something.
const SHORTEST: usize = 2;

/// The flags as the library takes them, with the reference machine's rates.
pub fn config(args: &TrainArgs, base: &Base) -> Result<TrainConfig> {
    let optimizer = &args.optimizer;
    let lora = lora(&args.lora, base)?;
    let layers = lora.num_layers.unwrap_or(base.info().layers);
    let method = match args.optimizer.method.method {
        MethodName::Side => Method::Side(side(args, base)?),
        _ => method(args, layers)?,
    };
    let name = optimizer.optimizer.unwrap_or(usual_optimizer(optimizer.method.method));
    let usual_rate = || usual_learning_rate(&method, name, optimizer.momentum.unwrap_or(0.0));
    Ok(TrainConfig {
        method,
        lora,
        init_adapter: args.lora.init_adapter.clone(),
        init_lora_weights: init_lora_weights(&args.lora)?,
        length: match args.length.iters {
            Some(iters) => Length::Iters(iters),
            None => Length::Epochs(args.length.epochs.unwrap_or(1)),
        },
        batch_size: args.length.batch_size,
        grad_accumulation_steps: args.length.grad_accumulation_steps,
        optimizer: with_momentum(name, optimizer)?,
        learning_rate: optimizer.learning_rate.unwrap_or_else(usual_rate),
        loraplus_ratio: optimizer.loraplus_ratio.unwrap_or(1.0),
        schedule: match optimizer.lr_schedule {
            Schedule::Constant => Shape::Constant,
            Schedule::Linear => Shape::Linear,
            Schedule::Cosine => Shape::Cosine,
        },
        warmup: optimizer.warmup,
        clip: optimizer.max_grad_norm,
        pack: args.pack,
        shuffle: !args.no_shuffle,
        seed: optimizer.seed,
        memory: args.memory(),
        threads: args.machine.threads(),
        spool: spool(args)?,
        spool_limit: args.spool_limit.map(|limit| limit.0),
        spool_format: match args.spool_type {
            SpoolType::F32 => SpoolFormat::F32,
            SpoolType::Bf16 => SpoolFormat::Bf16,
        },
        rates: Rates::REFERENCE,
    })
}

/// How steps find their direction, in a model of which `layers` are trained.
fn method(args: &TrainArgs, layers: usize) -> Result<Method> {
    let MethodArgs { method, layers_per_step, layer_order, zo_eps, zo_samples } =
        &args.optimizer.method;
    let flags = [
        ("--layers-per-step", layers_per_step.is_some(), MethodName::Lcsb),
        ("--layer-order", layer_order.is_some(), MethodName::Lcsb),
        ("--zo-eps", zo_eps.is_some(), MethodName::Mezo),
        ("--zo-samples", zo_samples.is_some(), MethodName::Mezo),
    ];
    let side = side_flags(&args.side).map(|(flag, is_given)| (flag, is_given, MethodName::Side));
    refuse_others(flags.into_iter().chain(side), *method)?;
    if *method == MethodName::Mesp && args.machine.asked_memory.is_some() {
        return Err(Failure::usage(
            "--method mesp stands for --method exact --memory min; leave --memory out, or take \
             --method exact",
        ));
    }
    Ok(match usual_method(*method, layers) {
        usual @ (Method::Exact | Method::Side(_)) => usual,
        Method::Lcsb(usual) => Method::Lcsb(Lcsb {
            layers_per_step: layers_per_step.unwrap_or(usual.layers_per_step),
            order: match layer_order {
                None => usual.order,
                Some(LayerOrderName::Cyclic) => LayerOrder::Cyclic,
                Some(LayerOrderName::Random) => LayerOrder::Random,
            },
        }),
        Method::Mezo(usual) => Method::Mezo(Mezo {
            eps: zo_eps.unwrap_or(usual.eps),
            samples: zo_samples.unwrap_or(usual.samples),
        }),
    })
}

/// Refuses flags that belong to another method.
fn refuse_others(
    mut flags: impl Iterator<Item = (&'static str, bool, MethodName)>,
    method: MethodName,
) -> Result<()> {
    match flags.find(|(_, is_given, of)| *is_given && *of != method) {
        None => Ok(()),
        Some((flag, _, of)) => {
            let of = of.to_possible_value().expect("no name is hidden");
            let name = of.get_name();
            Err(Failure::usage(format!(
                "{flag} belongs to --method {name}; leave it out, or take that method"
            )))
        }
    }
}

/// The flags of side tuning, and whether they are given.
fn side_flags(args: &SideArgs) -> [(&'static str, bool); 12] {
    [
        ("--server", args.server.is_some()),
        ("--loss-on", args.loss_on.is_some()),
        ("--first-tap", args.first_tap.is_some()),
        ("--tap-every", args.tap_every.is_some()),
        ("--tap-bits", args.tap_bits.is_some()),
        ("--tap-noise", args.tap_noise.is_some()),
        ("--tap-clip", args.tap_clip.is_some()),
        ("--side-width", args.side_width.is_some()),
        ("--side-reduction", args.side_reduction.is_some()),
        ("--side-gate", args.side_gate.is_some()),
        ("--window", args.window.is_some()),
        ("--keep-hidden", args.keep_hidden.is_some()),
    ]
}

/// Side tuning: the flags over what is usual for the model.
fn side(args: &TrainArgs, base: &Base) -> Result<Side> {
    let MethodArgs { layers_per_step, layer_order, zo_eps, zo_samples, .. } =
        &args.optimizer.method;
    let lora = &args.lora;
    let others = [
        ("--layers-per-step", layers_per_step.is_some(), MethodName::Lcsb),
        ("--layer-order", layer_order.is_some(), MethodName::Lcsb),
        ("--zo-eps", zo_eps.is_some(), MethodName::Mezo),
        ("--zo-samples", zo_samples.is_some(), MethodName::Mezo),
        ("--lora-rank", lora.lora_rank.is_some(), MethodName::Exact),
        ("--lora-alpha", lora.lora_alpha.is_some(), MethodName::Exact),
        ("--lora-dropout", lora.lora_dropout.is_some(), MethodName::Exact),
        ("--use-rslora", lora.use_rslora, MethodName::Exact),
        ("--target-modules", lora.target_modules.is_some(), MethodName::Exact),
        ("--num-layers", lora.num_layers.is_some(), MethodName::Exact),
        ("--init-adapter", lora.init_adapter.is_some(), MethodName::Exact),
        ("--init-lora-weights", lora.init_lora_weights != InitLora::Default, MethodName::Exact),
    ];
    refuse_others(others.into_iter(), MethodName::Side)?;
    let given = &args.side;
    let usual = SideConfig::usual(base.info().layers);
    let pace = SidePace::default();
    Ok(Side {
        network: SideConfig {
            first_tap: given.first_tap.unwrap_or(usual.first_tap),
            every: given.tap_every.unwrap_or(usual.every),
            width: given.side_width.unwrap_or(usual.width),
            reduction: given.side_reduction.unwrap_or(usual.reduction),
            gate: match given.side_gate {
                None => usual.gate,
                Some(SideGateName::Sum) => SideGate::Sum,
                Some(SideGateName::Ladder) => SideGate::Ladder,
            },
            format: match given.tap_bits {
                None => usual.format,
                Some(16) => TapFormat::F16,
                Some(8) => TapFormat::Q8,
                Some(4) => TapFormat::Q4,
                Some(bits) => {
                    return Err(Failure::usage(format!("--tap-bits {bits}: it is 16, 8 or 4")));
                }
            },
        },
        noise: TapNoise {
            clip: given.tap_clip.unwrap_or(TapNoise::NONE.clip),
            sigma: given.tap_noise.unwrap_or(TapNoise::NONE.sigma),
        },
        loss: match given.loss_on {
            None | Some(LossOnName::Device) => LossOn::Device,
            Some(LossOnName::Server) => LossOn::Trainer,
        },
        pace: SidePace {
            window: given.window.unwrap_or(pace.window),
            kept_bytes: given.keep_hidden.map_or(pace.kept_bytes, |bytes| bytes.0),
            link_bytes: RemoteLink::HELD_BYTES,
        },
    })
}

/// A method with its usual settings, in a model of which `layers` are trained.
pub fn usual_method(name: MethodName, layers: usize) -> Method {
    match name {
        MethodName::Exact | MethodName::Mesp => Method::Exact,
        MethodName::Lcsb => Method::Lcsb(Lcsb::half(layers)),
        MethodName::Mezo => Method::Mezo(Mezo::default()),
        MethodName::Side => Method::Side(Side {
            network: SideConfig::usual(layers),
            noise: TapNoise::NONE,
            loss: LossOn::Device,
            pace: SidePace { link_bytes: RemoteLink::HELD_BYTES, ..SidePace::default() },
        }),
    }
}

/// The optimiser that a method goes with: MeZO's update is SGD's.
pub fn usual_optimizer(method: MethodName) -> OptimizerName {
    match method {
        MethodName::Mezo => OptimizerName::Sgd,
        MethodName::Exact | MethodName::Mesp | MethodName::Lcsb | MethodName::Side => {
            OptimizerName::Adamw
        }
    }
}

/// The learning rate that does well on most data: docs/defaults.md has the sweep.
fn usual_learning_rate(method: &Method, optimizer: OptimizerName, momentum: f64) -> f64 {
    match (method, optimizer) {
        (Method::Mezo(_), _) => 3e-5,
        (Method::Side(_), _) => 1e-3,
        (_, OptimizerName::Sgd) => 0.1 * (1.0 - momentum),
        (_, OptimizerName::Adamw | OptimizerName::Adamw8bit) => 5e-4,
    }
}

/// The same with the machine's rates, which are measured if they were not yet.
pub fn with_rates(args: &TrainArgs, config: TrainConfig) -> Result<TrainConfig> {
    let assumed = args.rates.assume_rates.as_deref();
    let rates = rates::find(assumed, config.threads, config.spool.as_deref())?;
    Ok(TrainConfig { rates, ..config })
}

/// Where the scratch file goes: a folder that is there, or the output, which will be.
fn spool(args: &TrainArgs) -> Result<Option<PathBuf>> {
    match (&args.spool_dir, &args.output) {
        _ if args.no_spool => Ok(None),
        (Some(folder), _) if !folder.is_dir() => {
            let folder = folder.display();
            Err(Failure::usage(format!("--spool-dir {folder}: no folder is there; make it")))
        }
        (Some(folder), _) => Ok(Some(folder.clone())),
        (None, output) => Ok(Some(output.clone().unwrap_or_default())),
    }
}

/// An optimiser with the given weight decay or its default.
pub fn optimizer_config(name: OptimizerName, weight_decay: Option<f64>) -> OptimizerConfig {
    match name {
        OptimizerName::Adamw => OptimizerConfig::adamw(weight_decay.unwrap_or(0.01)),
        OptimizerName::Adamw8bit => OptimizerConfig::adamw_8bit(weight_decay.unwrap_or(0.01)),
        OptimizerName::Sgd => OptimizerConfig::sgd(weight_decay.unwrap_or(0.0)),
    }
}

/// The optimiser of the flags, with its momentum where there is one.
fn with_momentum(name: OptimizerName, args: &OptimizerArgs) -> Result<OptimizerConfig> {
    match (optimizer_config(name, args.weight_decay), args.momentum) {
        (config, None) => Ok(config),
        (OptimizerConfig::Sgd { weight_decay, .. }, Some(momentum)) => {
            Ok(OptimizerConfig::Sgd { momentum, weight_decay })
        }
        (_, Some(_)) => Err(Failure::usage(format!(
            "--momentum is of --optimizer sgd, and {} has its own; leave it out",
            name.name()
        ))),
    }
}

/// What the numbers of a new adapter are.
fn init_lora_weights(args: &LoraArgs) -> Result<InitLoraWeights> {
    match (args.init_lora_weights, &args.loftq_source) {
        (InitLora::Default, None) => Ok(InitLoraWeights::Uniform),
        (InitLora::Gaussian, None) => Ok(InitLoraWeights::Gaussian),
        (InitLora::Loftq, Some(source)) => Ok(InitLoraWeights::Loftq { source: source.clone() }),
        (InitLora::Loftq, None) => Err(Failure::usage(
            "--init-lora-weights loftq needs --loftq-source PATH, the model that the base was \
             quantised from: a GGUF file or a Hugging Face folder",
        )),
        (InitLora::Default | InitLora::Gaussian, Some(_)) => {
            Err(Failure::usage("--loftq-source is of --init-lora-weights loftq; give both"))
        }
    }
}

/// Tokens of the longest sequence that the flags allow.
pub fn longest(args: &TrainArgs) -> usize {
    args.window.options(args.memory()).window.longest()
}

/// Refuses, before any data is read, settings that can't be and a budget that no data would fit.
pub fn check_ahead(args: &TrainArgs, base: &Base, config: &TrainConfig) -> Result<()> {
    // The data may be smaller than a batch.
    let single = TrainConfig { batch_size: 1, grad_accumulation_steps: 1, ..config.clone() };
    if fits_ahead(base, SHORTEST, config)? || fits_ahead(base, SHORTEST, &single)? {
        return Ok(());
    }
    // The amount to name is one that will do.
    let longest = longest(args);
    match plan_ahead(base, longest, config) {
        Ok(_) => Ok(()),
        Err(Error::OverBudget(over)) => {
            Err(Failure::Budget(format!("for sequences of up to {longest} tokens, {over}")))
        }
        Err(error) => Err(error.into()),
    }
}

/// The kind of adapter: the flags over the defaults, or that of `--init-adapter`, which no flag
/// may contradict.
fn lora(args: &LoraArgs, base: &Base) -> Result<LoraConfig> {
    let flags = |base: LoraConfig| LoraConfig {
        rank: args.lora_rank.unwrap_or(base.rank),
        alpha: args.lora_alpha.unwrap_or(base.alpha),
        use_rslora: args.use_rslora || base.use_rslora,
        dropout: args.lora_dropout.unwrap_or(base.dropout),
        targets: args.target_modules.clone().unwrap_or(base.targets),
        num_layers: args.num_layers.or(base.num_layers),
    };
    let Some(folder) = &args.init_adapter else { return Ok(flags(LoraConfig::default())) };
    let init = AdapterStart::folder(base, folder)?.0.shape().config().clone();
    let given = flags(init.clone());
    let layers = |c: &LoraConfig| c.num_layers.unwrap_or(base.info().layers).to_string();
    let modules = |t: &TargetModules| t.modules(base.info().sites).map(|names| names.join(","));
    let pairs = [
        ("--lora-rank", given.rank.to_string(), init.rank.to_string()),
        ("--lora-alpha", given.alpha.to_string(), init.alpha.to_string()),
        ("--use-rslora", given.use_rslora.to_string(), init.use_rslora.to_string()),
        ("--lora-dropout", given.dropout.to_string(), init.dropout.to_string()),
        ("--target-modules", modules(&given.targets)?, modules(&init.targets)?),
        ("--num-layers", layers(&given), layers(&init)),
    ];
    for (flag, given, init) in pairs {
        if given != init {
            return Err(Failure::usage(format!(
                "{flag} {given} contradicts --init-adapter {}, which has {init}; leave {flag} out",
                folder.display()
            )));
        }
    }
    Ok(init)
}
