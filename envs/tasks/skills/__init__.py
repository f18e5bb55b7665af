# Families of instructions in levels of difficulty and, some of them, in several languages.
