"""What people read: computed as plain data first, then rendered.

Some sentences are made where their facts are: in `ratios`, `analysis.reasons`, `analysis.limits`, `space.constraints`
and the rules of engines. Reasons for disturbances are stored in the records, in English.
"""
