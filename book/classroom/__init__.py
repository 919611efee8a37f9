"""The classroom: exercises out of chapters, and the grading of what students hand in.

`exercises` reads and rewrites notebooks, `assign` and `grade` (one floor up) are the verbs.
Grading needs four kinds of processes, each with one task:

* the press (`grader`) watches: it starts the others, measures them, ends them;
* the nursery (`nursery`) has imported torch and the library, and forks the next two;
* the answer (`jail`, `answer`) runs the student's cells, locked in, and knows no check;
* the checker (`checker`) runs the teacher's check cell and knows no line of the student's code.

Between the last two go numbers, strings and tensors (`wire`). A student's code can therefore
return whatever it likes to a check, but it cannot touch the check, the verdict or the library that
the check uses.
"""
