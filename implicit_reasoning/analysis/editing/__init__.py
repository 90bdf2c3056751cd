"""Knowledge editing: facts get new tails, and their consequences are scored against the truth.

edit_cases.py         chooses facts to edit, and lists the consequences of each edit
"""
