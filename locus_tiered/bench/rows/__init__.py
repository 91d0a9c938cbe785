"""One module per topic of the benchmark; ``suite.ROWS`` lists them."""
