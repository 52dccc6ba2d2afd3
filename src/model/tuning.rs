//! Which parameters of a model learn, how fast and from when on, and which begin anew.

use super::checkpoint::initialise;
use super::{LoadReport, Model};
use crate::error::{Error, Result};
use crate::nn::params::{Learning, Spec};
use crate::suggest::did_you_mean;
use regex::Regex;
use std::collections::BTreeSet;

/// How the parts of a model learn. Parts are, from the bottom: the embeddings (with what all layers read), each layer, the
/// head (pooler and classifier).
#[derive(Debug, Clone, PartialEq)]
pub struct Tuning {
    /// Modules or patterns of names that keep their weights.
    pub freeze: Vec<String>,
    /// With the embeddings the first so many layers keep their weights; 0: nothing does.
    pub freeze_layers: usize,
    /// Gradual unfreezing (Howard & Ruder 2018), if any.
    pub thaw: Option<Thaw>,
    /// Each part learns at this share of the rate of the part above it.
    pub layer_wise_lr_decay: f64,
    /// The head's learning rate, as a multiple of the run's.
    pub head_rate: Option<f64>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { freeze: vec![], freeze_layers: 0, thaw: None, layer_wise_lr_decay: 1.0, head_rate: None }
    }
}

/// The head learns from the first epoch on, and so many parts below it more with every epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct Thaw {
    pub layers_per_epoch: usize,
    /// First step of each epoch of the run.
    pub epoch_starts: Vec<u64>,
}

impl Thaw {
    /// The first step of a part of a model with so many layers, if the run is long enough for it: the layers from the top
    /// down from the second epoch on, the embeddings (part 0) an epoch after the last of them.
    fn since(&self, part: usize, layers: usize) -> Option<u64> {
        self.epoch_starts.get(self.epoch(part, layers)).copied()
    }

    fn epoch(&self, part: usize, layers: usize) -> usize {
        let per_epoch = self.layers_per_epoch.max(1);
        if part == 0 { layers.div_ceil(per_epoch) + 1 } else { (layers - part) / per_epoch + 1 }
    }

    /// What to say when the run ends before these parts would learn.
    fn too_late(&self, parts: &BTreeSet<usize>, layers: usize) -> Option<String> {
        let (first, top) = (parts.iter().find(|part| **part > 0), *parts.last()?);
        let of_layers = first.map(|first| match top - first {
            0 => format!("layer {}", top - 1),
            _ => format!("layers {} to {}", first - 1, top - 1),
        });
        let embeddings = parts.contains(&0).then(|| "the embeddings".to_owned());
        let freeze = if top > 0 { format!("freeze_layers = {top}") } else { "freeze = [\"embeddings\"]".into() };
        let needed = parts.iter().map(|part| self.epoch(*part, layers) + 1).max()?;
        Some(format!(
            "train.unfreeze_layers_per_epoch = {}: the run ends before it comes to {}; train for {needed} epochs or more, or \
             set train.{freeze} if that is meant",
            self.layers_per_epoch,
            embeddings.into_iter().chain(of_layers).collect::<Vec<_>>().join(" and ")
        ))
    }
}

impl Model {
    /// Has the parameters learn as `tuning` says. Gives a warning when the run is too short for all that is to learn.
    ///
    /// # Errors
    /// [`Error::Input`] when a name is no module's, there are too few layers, or nothing is left to learn.
    pub fn tune(&mut self, tuning: &Tuning) -> Result<Option<String>> {
        let layers = self.encoder.config().names.layers.len();
        self.must_have_layers("freeze_layers", tuning.freeze_layers)?;
        if self.encoder.shares_layers() {
            let uses = [
                ("layer_wise_lr_decay", tuning.layer_wise_lr_decay != 1.0),
                ("unfreeze_layers_per_epoch", tuning.thaw.is_some()),
            ];
            uses.iter().filter(|(_, used)| *used).try_for_each(|(key, _)| Err(shared(key)))?;
        }
        let patterns = tuning.freeze.iter().map(|p| self.module_pattern(p)).collect::<Result<Vec<_>>>()?;
        // Of each parameter; the head lies above the last layer.
        let parts: Vec<usize> = self
            .params
            .specs()
            .iter()
            .map(|s| if self.is_head(s) { layers + 1 } else { self.encoder.depth(s) })
            .collect();
        let mut late = BTreeSet::new();
        let learning = self.params.specs().iter().zip(&parts).map(|(spec, &part)| {
            let kept = tuning.freeze_layers > 0 && part <= tuning.freeze_layers;
            let since = match &tuning.thaw {
                _ if kept || patterns.iter().any(|p| p.is_match(&spec.name)) => None,
                Some(thaw) if part <= layers => {
                    let since = thaw.since(part, layers);
                    late.extend(since.is_none().then_some(part));
                    since
                }
                _ => Some(0),
            };
            let decayed = tuning.layer_wise_lr_decay.powi((layers + 1 - part) as i32);
            let rate = if part > layers { tuning.head_rate.unwrap_or(1.0) } else { decayed };
            Learning { rate, since }
        });
        let learning = learning.collect();
        self.params.learn(learning)?;
        if self.params.trained().next().is_none() {
            return Err(Error::input("train.freeze: nothing is left to train"));
        }
        let below_learns = self.params.learners().any(|(s, _)| !self.is_head(s));
        let below = [
            ("layer_wise_lr_decay", tuning.layer_wise_lr_decay != 1.0),
            ("unfreeze_layers_per_epoch", tuning.thaw.is_some()),
        ];
        if let Some((key, _)) = below.iter().find(|(_, used)| *used && !below_learns) {
            let message = format!("train.{key} is set, but nothing below the head ever learns; remove it");
            return Err(Error::input(message));
        }
        if tuning.head_rate.is_some() && !self.params.trained().any(|s| self.is_head(s)) {
            let message = "train.head_learning_rate is set, but train.freeze keeps the head as it is; remove one";
            return Err(Error::input(message));
        }
        Ok(tuning.thaw.as_ref().and_then(|thaw| thaw.too_late(&late, layers)))
    }

    /// Draws the top `layers` layers and the head's dense layer (the pooler) anew from `seed` (Zhang et al. 2021,
    /// "Revisiting Few-sample BERT Fine-tuning"), which `report` then tells. To be called after [`Self::tune`].
    ///
    /// # Errors
    /// [`Error::Input`] when there are fewer layers, or some of these do not learn.
    pub fn reinitialise(&mut self, layers: usize, seed: u64, report: &mut LoadReport) -> Result<()> {
        if layers == 0 {
            return Ok(());
        }
        self.must_have_layers("reinit_layers", layers)?;
        let config = self.encoder.config();
        let from = config.names.layers.len() - layers;
        let is_pooler =
            |s: &Spec| config.pooling.dense.as_ref().is_some_and(|dense| s.name.starts_with(&format!("{dense}.")));
        let is_top = |s: &Spec| if self.is_head(s) { is_pooler(s) } else { self.encoder.depth(s) > from };
        for spec in self.params.specs().iter().filter(|s| is_top(s)) {
            if !self.params.learners().any(|(s, _)| s.name == spec.name) {
                let message = format!(
                    "train.reinit_layers draws {} anew, but it never learns: it is frozen, or the run ends before \
                     unfreeze_layers_per_epoch comes to it",
                    spec.name
                );
                return Err(Error::input(message));
            }
            let mut values = vec![0.0; spec.len()];
            initialise(&mut values, spec, seed, &config.initializer);
            self.params.set_weight(spec, values)?;
            if !report.initialised.contains(&spec.name) {
                report.loaded = report.loaded.saturating_sub(1);
                report.initialised.push(spec.name.clone());
            }
        }
        Ok(())
    }

    fn is_head(&self, spec: &Spec) -> bool {
        spec.offset >= self.head_from
    }

    fn must_have_layers(&self, key: &str, asked: usize) -> Result<()> {
        let layers = self.encoder.config().names.layers.len();
        if asked > layers {
            return Err(Error::input(format!("train.{key} is {asked}, but the model has {layers} layers")));
        }
        if asked > 0 && self.encoder.shares_layers() { Err(shared(key)) } else { Ok(()) }
    }

    /// What matches the names of the parameters that a module or pattern means.
    fn module_pattern(&self, module: &str) -> Result<Regex> {
        let prefix = self.encoder.config().names.prefix;
        let wrong = |e: &regex::Error| Error::input(format!("train.freeze: {module:?} is no pattern: {e}"));
        let pattern = Regex::new(&expression(module, prefix)).map_err(|e| wrong(&e))?;
        if self.params.specs().iter().any(|s| pattern.is_match(&s.name)) {
            return Ok(pattern);
        }
        let names = self.params.specs().iter().flat_map(|s| modules_of(s.name.trim_start_matches(prefix)));
        let hint = did_you_mean(module, names);
        let message = "; expected modules such as embeddings, encoder.layer.0, pooler or classifier, or patterns such as \
                       encoder.layer.*.attention";
        Err(Error::input(format!("train.freeze: the model has no module {module:?}{hint}{message}")))
    }
}

fn shared(key: &str) -> Error {
    let message = "is set, but all layers of this model share their parameters; remove the key";
    Error::input(format!("train.{key} {message}"))
}

/// The regular expression of a module's name, or of a pattern: `*` is any characters, `?` one, `[…]` one of some, as in a
/// shell; between slashes stands a regular expression, which may match anywhere in a name. Else the whole name of a
/// parameter or of a module around it must match, `prefix` (the family's) or not.
fn expression(module: &str, prefix: &str) -> String {
    if let Some(inner) = module.strip_prefix('/').and_then(|m| m.strip_suffix('/')).filter(|m| !m.is_empty()) {
        return inner.to_owned();
    }
    let mut out = String::new();
    let mut rest = module;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '*' => out.push_str(".*"),
            '?' => out.push('.'),
            '[' if rest.contains(']') => {
                let (inside, after) = rest.split_once(']').unwrap_or((rest, ""));
                let inside = inside.replace('\\', r"\\");
                let negated = inside.strip_prefix('!').map(|i| format!("^{i}"));
                out.push_str(&format!("[{}]", negated.unwrap_or(inside)));
                rest = after;
            }
            c => out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    format!(r"^(?:{})?{out}(?:\.|$)", regex::escape(prefix))
}

/// The modules that a parameter lies in, outermost first.
fn modules_of(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(at, _)| &name[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_thaw_an_epoch_after_the_lowest_layers() {
        let thaw = |layers_per_epoch| Thaw { layers_per_epoch, epoch_starts: vec![0, 10, 20, 30] };
        let since =
            |by: usize, layers: usize| (0..=layers).map(|part| thaw(by).since(part, layers)).collect::<Vec<_>>();
        assert_eq!(since(2, 3), [Some(30), Some(20), Some(10), Some(10)]);
        assert_eq!(since(9, 2), [Some(20), Some(10), Some(10)]);
        assert_eq!(since(1, 3), [None, Some(30), Some(20), Some(10)]);
    }

    #[test]
    fn what_never_thaws_is_named_with_what_to_do() {
        let thaw = Thaw { layers_per_epoch: 1, epoch_starts: vec![0, 10, 20] };
        let says = |parts: &[usize]| thaw.too_late(&parts.iter().copied().collect(), 4).unwrap_or_default();
        assert_eq!(says(&[]), "");
        for (parts, words) in [
            (&[0][..], ["comes to the embeddings; train for 6 epochs", "train.freeze = [\"embeddings\"]"]),
            (&[0, 1], ["comes to the embeddings and layer 0; train for 6 epochs", "train.freeze_layers = 1"]),
            (&[2], ["comes to layer 1; train for 4 epochs", "train.freeze_layers = 2"]),
            (&[0, 1, 2, 3], ["comes to the embeddings and layers 0 to 2; train", "train.freeze_layers = 3"]),
        ] {
            assert!(words.iter().all(|w| says(parts).contains(w)), "{}", says(parts));
        }
    }

    #[test]
    fn patterns_match_whole_names_of_modules() {
        let matches = |module: &str, name: &str| Regex::new(&expression(module, "bert.")).unwrap().is_match(name);
        let query = "bert.encoder.layer.11.attention.self.query.weight";
        for module in [
            "encoder.layer.11",
            "bert.encoder",
            "encoder.layer.*.attention",
            "*.query",
            "*.weight",
            "encoder.layer.1?",
            "encoder.layer.[0-9][!0]",
            r"/layer\.(10|11)\./",
            "/query/",
        ] {
            assert!(matches(module, query), "{module}");
        }
        for module in
            ["encoder.layer.1", "layer.11", "encoder.layer.[!1]*", "query", "*.bias", "/^encoder/", "encoder?layer.1"]
        {
            assert!(!matches(module, query), "{module}");
        }
        assert!(Regex::new(&expression("a.[z-a]", "bert.")).is_err());
        assert!(matches("a[b", "bert.a[b.weight"));
    }
}
