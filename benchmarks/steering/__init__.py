"""Does V-pretraining steer? A small learner, four kinds of stream, every control, held-out templates, many seeds."""
