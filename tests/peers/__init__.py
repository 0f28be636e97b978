"""Run the test suites of transformers and peft on our classes, with the stock classes as the control."""
