"""The words everything else is written in: messages, context, instances, live values, time and tasks."""
