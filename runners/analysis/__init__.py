"""What goes on inside a trained model: functions of traces to tidy tables, each with a figure."""
