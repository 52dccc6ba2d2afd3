use super::*;

#[test]
fn warmup_steps_win_over_the_ratio() {
    let mut c = TrainConfig { warmup_ratio: 0.1, ..TrainConfig::default() };
    assert_eq!(c.warmup_steps_for(95), 10);
    c.warmup_steps = 3;
    assert_eq!(c.warmup_steps_for(95), 3);
    assert_eq!(TrainConfig::default().warmup_steps_for(95), 0);
}

#[test]
fn losses_are_better_when_smaller() {
    let best =
        |m: &str, g| TrainConfig { metric_for_best_model: m.into(), greater_is_better: g, ..TrainConfig::default() };
    assert!(!best("loss", None).greater_is_better());
    assert!(!best("mae", None).greater_is_better());
    assert!(best("f1", None).greater_is_better());
    assert!(best("loss", Some(true)).greater_is_better());
}

#[test]
fn every_range_is_checked() {
    type Change = fn(&mut TrainConfig);
    let wrong: [(&str, Change); 28] = [
        ("train.epochs", |c| c.epochs = 0.0),
        ("train.epochs", |c| c.epochs = f64::NAN),
        ("train.max_steps", |c| c.max_steps = Some(0)),
        ("train.batch_size", |c| c.batch_size = Some(0)),
        ("train.batch_tokens", |c| c.batch_tokens = Some(0)),
        ("train.batch_tokens", |c| (c.batch_size, c.batch_tokens) = (Some(8), Some(512))),
        ("train.eval_batch_size", |c| c.eval_batch_size = 0),
        ("train.learning_rate", |c| c.learning_rate = f64::INFINITY),
        ("train.learning_rate", |c| c.learning_rate = 0.0),
        ("train.head_learning_rate", |c| c.head_learning_rate = Some(0.0)),
        ("train.layer_wise_lr_decay", |c| c.layer_wise_lr_decay = 1.1),
        ("train.ema_decay", |c| c.ema_decay = 1.0),
        ("train.r_drop", |c| c.r_drop = -1.0),
        ("train.fgm_epsilon", |c| c.fgm_epsilon = f64::NAN),
        ("train.weight_decay", |c| c.weight_decay = -0.1),
        ("train.adam_beta1", |c| c.adam_beta1 = 1.0),
        ("train.adam_beta2", |c| c.adam_beta2 = -0.1),
        ("train.adam_epsilon", |c| c.adam_epsilon = 0.0),
        ("train.max_grad_norm", |c| c.max_grad_norm = -1.0),
        ("train.warmup_ratio", |c| c.warmup_ratio = 1.1),
        ("train.gradient_accumulation_steps", |c| c.gradient_accumulation_steps = 0),
        ("train.label_smoothing_factor", |c| c.label_smoothing_factor = 1.0),
        ("train.focal_gamma", |c| c.focal_gamma = -1.0),
        ("train.class_weights", |c| c.class_weights = Some(ClassWeights::Table([("a".into(), 0.0)].into()))),
        ("train.logging_steps", |c| c.logging_steps = 0),
        ("train.save_steps", |c| c.save_steps = Some(0)),
        ("train.early_stopping_patience", |c| c.early_stopping_patience = Some(0)),
        ("train.metric_for_best_model", |c| c.metric_for_best_model = "pearson".into()),
    ];
    assert_eq!(TrainConfig::default().check(TaskKind::Classification, true), Ok(()));
    for (key, change) in wrong {
        let mut c = TrainConfig::default();
        change(&mut c);
        assert_eq!(c.check(TaskKind::Classification, true).unwrap_err().key, key);
    }
}

#[test]
fn keys_that_would_do_nothing_are_refused() {
    let stop = TrainConfig { early_stopping_patience: Some(2), ..TrainConfig::default() };
    assert_eq!(stop.check(TaskKind::Classification, true), Ok(()));
    assert_eq!(stop.check(TaskKind::Classification, false).unwrap_err().key, "train.early_stopping_patience");
    let smooth = TrainConfig { label_smoothing_factor: 0.1, ..TrainConfig::default() };
    assert_eq!(smooth.check(TaskKind::Regression, true).unwrap_err().key, "train.label_smoothing_factor");
    let focal = TrainConfig { focal_gamma: 2.0, ..TrainConfig::default() };
    assert_eq!(focal.check(TaskKind::Regression, true).unwrap_err().key, "train.focal_gamma");
    let both = TrainConfig { label_smoothing_factor: 0.1, ..focal };
    assert_eq!(both.check(TaskKind::Classification, true).unwrap_err().key, "train.focal_gamma");
    let weights = TrainConfig { class_weights: Some(ClassWeights::Balanced), ..TrainConfig::default() };
    assert_eq!(weights.check(TaskKind::Classification, true), Ok(()));
    assert_eq!(weights.check(TaskKind::Regression, true).unwrap_err().key, "train.class_weights");
    let warm = TrainConfig { warmup_steps: 5, lr_scheduler_type: Scheduler::Constant, ..TrainConfig::default() };
    assert_eq!(warm.check(TaskKind::Classification, true).unwrap_err().key, "train.lr_scheduler_type");
}

#[test]
fn smaller_batches_keep_the_rows_of_a_step() {
    let config = |rows| TrainConfig {
        batch_size: rows,
        gradient_accumulation_steps: 3,
        auto_find_batch_size: true,
        ..TrainConfig::default()
    };
    let sizes = |rows: usize| {
        let all = std::iter::successors(Some(config(Some(rows))), TrainConfig::with_smaller_batches);
        all.map(|c| (c.batch_size.unwrap(), c.gradient_accumulation_steps)).collect::<Vec<_>>()
    };
    assert_eq!(sizes(30), [(30, 3), (15, 6), (5, 18), (1, 90)]);
    assert_eq!(sizes(1), [(1, 3)]);
    assert_eq!(
        config(Some(30)).with_batches_of(5),
        Some(TrainConfig { gradient_accumulation_steps: 18, ..config(Some(5)) })
    );
    assert_eq!((config(Some(30)).with_batches_of(10), config(None).with_smaller_batches()), (None, None));
    let tokens = TrainConfig { batch_tokens: Some(100), ..config(None) };
    let error = tokens.check(TaskKind::Classification, false).unwrap_err();
    assert_eq!(error.key, "train.auto_find_batch_size");
}
