"""V-pretraining: continued pretraining with downstream feedback (Ke and Fanti, arXiv 2601.22108)."""
