"""What every rank does around its program: bootstrap, signals, checkpoint, metrics, exit record."""
