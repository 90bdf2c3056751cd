"""Knowledge editing: facts get new tails, and their consequences are scored against the truth.

edit_cases.py         chooses facts to edit, and lists the consequences of each edit
value_search.py       searches for the vector that makes a model answer with the new tail
descent.py            gradient descent that ends when an edit is certain enough
rank_one.py           rank-one edits of an MLP (ROME): exact key, second moment, optimized value
state_edits.py        edits that overwrite a state, and change no stored fact
batched.py            many edits in one model, over the MLPs of several blocks (MEMIT)
fine_tuning.py        fine-tuning on one edit
scores.py             scores the answers of an edited model
edited_models.py      evaluates many edited models in one program
sequences.py          several edits of one model: edited back, and one after another
traces.py             where the key of an edit is read, and which tail a state codes
knowledge_editing.py  the instrument: edits facts with several editors, and scores them
fact_edit.py          edits one fact of one model
edit_effects.py       measures what the edit of one fact changes, beside controls
edit_summary.py       numbers and sentences on the effects
page.py               the page of an edit
"""
