-- The measured tables of the other variants: the same columns, defaults and indexes as Django made.
create table item_{variant} (like item_pghistory including all);
create table document_{variant} (like document_pghistory including all);
