"""Settings of SAELens's trainer for comparisons; runs in the SAELens environment.

The settings are those of `sae_lens.synthetic.train_toy_sae`: no warm-up, no decay, no logging.
"""

from sae_lens.config import LoggingConfig, SAETrainerConfig


def trainer_config(samples: int, batch: int, learning_rate: float) -> SAETrainerConfig:
    """Return a configuration with a constant learning rate, for `samples` samples in total."""
    return SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=samples,
        device="cpu",
        autocast=False,
        lr=learning_rate,
        lr_end=learning_rate,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=batch,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
