"""The command line. Modules are imported when their command runs, so that `exo --help` answers at once."""
