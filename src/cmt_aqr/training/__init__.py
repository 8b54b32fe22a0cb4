"""The LightningModule and what it needs: matching, denoising, losses, schedules, callbacks."""
