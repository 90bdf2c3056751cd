r"""Does a model compose single facts, or does it follow the evidence from training chains?

    python experiments/reasoning_or_shortcut.py --out=results/reasoning_or_shortcut

In the task `ladder`, a cold fact begins exactly two training chains. Of these chains, 0, 1 or 2
give evidence about the bridge (rungs c0, c1, c2), and the single fact states the bridge at every
rung. The arms with four worlds and two initializations each are:

- `ladder`: the usual loss and the usual answers (the implicit arm).
- `ladder_early`: early supervision of single facts with weight 1.
- `ladder_chain_of_thought`: the answer of a chain is the bridge and then the last entity.
- `ladder_looped`: two blocks that are applied twice.
- `cue_conflict_long`: the triple of a fact contradicts its training chains.

Three arms with three runs each are shown as curves and support no claim: `ladder_identity`
(identity rows of both kinds), `like_ladder_without_id_triples` and `like_ladder_scrambled`.

The runs are those of `runs.py`. Runs are trained and measured in separate processes, `--jobs` in
parallel. The script resumes run by run: runs with results in `--out` are not measured again.
`--arms` restricts the arms. The tables and figures show all results in `--out`.

Decision rules, written before the first run
--------------------------------------------
Accuracies are of all probe rows of a split. Intervals of one run are 95% intervals clustered by
bridge. Intervals over runs are 95% t intervals over the means of the four worlds. No p value is
corrected for the number of questions.

Stages of a run: `memorised` is the first evaluation with train_ii >= .99. `half` is the first with
test_ii >= .5. `end` is the last evaluation.

1. Grounded. A run is grounded at a stage if the lower end of c0 is at least the accuracy of the
   best rule on c0 plus .05, and c0 >= .8 c2. It is not grounded if the upper end of c0 is below the
   best rule plus .05, or if the upper end of c0 is below .8 c2. Otherwise the run is open. An arm
   is grounded if at least 7 of its 8 runs are, not grounded if at least 7 runs are not, and
   otherwise open.
2. Evidence. The accuracy of an arm is a function of the evidence if the intervals over worlds of
   c1 - c0 and of c2 - c0 are above 0 and the interval of c0 - oi contains a value between -.1 and
   .1. It goes by the fact if the interval of c2 - c0 contains 0 and c2 - c0 < .1. Otherwise open.
3. Instruments. Cross-query patching and the mean swap at S[1, r1] agree with the answers at a stage
   if, over runs and rungs, the Spearman correlation between the share of answers that follow the
   state and the accuracy of the rung is at least .7, and no run has the claim `grounded` while the
   rule of question 1 says that it is not grounded, or the reverse.
4. Cue conflict. For n training chains, the chains win at a stage if the interval over worlds of the
   share of answers that follow the chains minus the share that follow the fact is above 0. The fact
   wins if the interval is below 0. Neither wins if more than half of the answers follow neither.
5. Grokking and grounding. In a run, both come together if c0 reaches .5 at a step at most twice as
   late as the step at which test_ii reaches .5. An arm has them together if this holds in at least
   7 of 8 runs, apart if it holds in at most 1 run. Kaplan-Meier curves show the steps at which
   test_ii and c0 reach .5; runs that do not reach .5 are censored at the last step.
6. Chain of thought and early supervision, each compared with the implicit arm: the difference of a
   split's accuracy at the end, and of the step at which test_ii reaches .5, paired by world and
   initialization. A difference counts if its interval over worlds excludes 0.
7. Memorise-only phase. An arm has none if test_ii >= .5 at the stage `memorised` in at least 7 of 8
   runs.
8. The gap of the second hop. It remains if the interval over worlds of io - test_ii at the end is
   below -.1.
9. Teaching cold facts later. Each run of the implicit arm is continued for 2,000 steps on the task
   `composition` of the same world, in which the cold facts are ordinary facts. Teaching repairs
   rung 0 if, at the end, the accuracy on its chains that neither task trains on is at least .8
   times that on held-out chains of other facts, in at least 7 of 8 runs.

Smoke test:
    python experiments/reasoning_or_shortcut.py --scale=smoke --arms=ladder --worlds=1 --inits=1 \
        --jobs=0 --runs=runs/smoke --out=runs/smoke/reasoning_or_shortcut
"""
