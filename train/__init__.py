"""From text to a trained model: data, loss, optimizers, the step, checkpoints, the loop."""
