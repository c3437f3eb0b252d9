"""Does V steer a real learner? SmolLM2-135M on grade-school problems in one notation, steered to another."""
