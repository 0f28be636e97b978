"""The test suites of transformers and peft, run on our classes and on the stock ones as the control."""
