"""jaxsgd compared with its alternatives: the same work, in one session, with the hardware's limit.

    make bench                              # installs the peers, runs everything
    python -m benchmarks seed softmax       # some works
    python -m benchmarks --help

A "work" (`works`) is a benchmark workload: a set of cases. A case is a task (`tasks`) that
contenders (`ours`, `handwritten`, `pytorch`, `keras_fit`, `sklearn_fit`, ...) train. Each contender
is a separate process (`contender`); they take turns in each round (`contest`), and must reach the
same objective.
"""
