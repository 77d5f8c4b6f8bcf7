"""What users come for, from a table to a table: translating and labelling."""
