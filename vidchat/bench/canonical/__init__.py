"""Metrics as papers report them, with published weights that the user gives as files or names on the Hub."""
