"""Code of pipelines and schedulers that travels inside exported folders: it imports nothing of fewstep."""
