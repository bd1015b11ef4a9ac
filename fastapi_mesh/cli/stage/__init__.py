"""The demo's stage: its applications as processes, calls to them, the story that is played, and its verdicts."""
