"""Recurrent policies: tasks that need memory, networks, PPO."""
