"""The command line: one thin file a verb. Heavy imports happen after the flags are parsed, so that help is quick."""
