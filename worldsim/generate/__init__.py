"""From a plan to video: prefill, rollout, render and the user's verbs."""
