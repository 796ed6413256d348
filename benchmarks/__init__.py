"""jaxsgd beside what a user would pick instead: the same work, in one run, with the limit drawn in.

    make bench                              # installs the peers, runs everything
    python -m benchmarks seed softmax       # some works
    python -m benchmarks --help

A work (`works`) is a table of cases; a case is a task (`tasks`) that contenders (`ours`,
`handwritten`, `pytorch`, `keras_fit`, `sklearn_fit`, ...) train. Each contender is a process of its
own (`contender`); they take turns, round by round (`contest`), and must reach the same objective.
"""
