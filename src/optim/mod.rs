//! How the learning rate moves. The optimizer itself is [`crate::ops::adamw`], its parameter groups are in
//! [`crate::nn::params`].

pub mod schedule;
