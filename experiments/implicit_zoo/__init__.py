"""Inner problems of many kinds, one a file, each with a map whose zero is its solution."""
