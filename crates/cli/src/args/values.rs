//! Parsers of what flags are given.

use clap::builder::{PossibleValue, PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use countdown::{
    Allocation, Inputs, Threshold,
    eval::Stepping,
    kernels::DType,
    sparsity::{CUTS, Cut, METHODS, Method, PREDICTORS, PredictorKind, check_sparsity},
    train::Target,
};

/// Parses a method, with the registry's summaries as help.
pub(crate) fn methods() -> impl TypedValueParser<Value = &'static Method> {
    let values = METHODS
        .iter()
        .map(|m| PossibleValue::new(m.name).help(m.summary));
    PossibleValuesParser::new(values).try_map(|name| Method::by_name(&name))
}

/// Parses a target.
pub(crate) fn sparsity(text: &str) -> Result<f64, String> {
    let value: f64 = text
        .parse()
        .map_err(|_| "a share such as 0.7 is needed".to_owned())?;
    check_sparsity(value).map_err(|e| e.to_string())?;
    Ok(value)
}

/// Parses a cut.
pub(crate) fn cuts() -> impl TypedValueParser<Value = Cut> {
    named(CUTS.map(|(name, cut)| {
        let help = match cut {
            Cut::Layer => "the signal itself, one threshold a layer, as in the papers",
            Cut::Neuron => "the signal times a constant of the neuron",
            Cut::Signed => "the signal times the neuron's constant for its sign",
        };
        (name, help, cut)
    }))
}

/// Parses a predictor.
pub(crate) fn predictors() -> impl TypedValueParser<Value = PredictorKind> {
    named(PREDICTORS.iter().map(|k| (k.name(), k.summary(), *k)))
}

pub(crate) fn targets() -> impl TypedValueParser<Value = Target> {
    named([
        ("magnitude", "the largest |s|", Target::Magnitude),
        (
            "weighted",
            "the largest |s| times the norm of the neuron's column of down",
            Target::Weighted,
        ),
        (
            "output",
            "those whose absence costs the output most, given what else is dropped",
            Target::Output,
        ),
        ("gate", "the largest |act(g)|", Target::Gate),
    ])
}

pub(crate) fn thresholds() -> impl TypedValueParser<Value = Threshold> {
    named([
        (
            "quantile",
            "of the scores of all tokens together",
            Threshold::Quantile,
        ),
        ("mean", "of the tokens' own k-th scores", Threshold::Mean),
    ])
}

pub(crate) fn inputs() -> impl TypedValueParser<Value = Inputs> {
    named([
        (
            "dense",
            "what the dense model gives; one pass for all plans",
            Inputs::Dense,
        ),
        (
            "sequential",
            "what sparse layers below give; passes for each plan",
            Inputs::Sequential,
        ),
    ])
}

pub(crate) fn allocations() -> impl TypedValueParser<Value = Allocation> {
    named([
        ("uniform", "every layer the target", Allocation::Uniform),
        (
            "distortion",
            "more where the output moves less",
            Allocation::Distortion,
        ),
    ])
}

/// Parses how tokens are fed where a text is scored under a plan.
pub(crate) fn steppings() -> impl TypedValueParser<Value = Stepping> {
    named([
        (
            "one",
            "one by one, through the kernels that generation uses",
            Stepping::OneByOne,
        ),
        (
            "batched",
            "together with the same neurons skipped, several times quicker",
            Stepping::Batched,
        ),
    ])
}

/// Parses one of some names, each with a line of help.
fn named<T: Clone + Send + Sync + 'static>(
    values: impl IntoIterator<Item = (&'static str, &'static str, T)>,
) -> impl TypedValueParser<Value = T> {
    let values: Vec<_> = values.into_iter().collect();
    let names = values
        .iter()
        .map(|(name, help, _)| PossibleValue::new(*name).help(*help));
    PossibleValuesParser::new(names.collect::<Vec<_>>()).try_map(move |name| {
        let found = values.iter().find(|(n, ..)| *n == name);
        found.map(|(.., v)| v.clone()).ok_or("no such name")
    })
}

/// Some of the storage types, by name.
pub(crate) fn dtypes(
    types: impl IntoIterator<Item = DType>,
) -> impl TypedValueParser<Value = DType> {
    PossibleValuesParser::new(types.into_iter().map(DType::name))
        .try_map(|name| DType::from_name(&name).ok_or("there is no such type"))
}

/// Parses the storage type of a cache.
pub(crate) fn cache_types() -> impl TypedValueParser<Value = DType> {
    PossibleValuesParser::new(["f16", "f32"]).map(|name| match name.as_str() {
        "f32" => DType::F32,
        _ => DType::F16,
    })
}

/// Parses a number of threads; more than a thousand are a mistake.
pub(crate) fn threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1024)
}

/// Parses a number that has a lower limit.
pub(crate) fn at_least(least: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..)
}
