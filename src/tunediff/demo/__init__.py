"""The embedded demo: a generated corpus with known concepts and a small Gemma-2 pair trained on it."""

DEMO = "demo"  # in the place of base and chat: the first two of its models
DEMO_MODELS = ("demo-base", "demo-chat", "demo-retuned", "demo-continued")  # names of its models in a config
VERSION = 1  # of its texts and models: raised when what they contain changes, see `tunediff.pipeline.record`
