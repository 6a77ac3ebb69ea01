-- A plain trigger that inserts one constant row into a copy of our log: what the row and its indexes cost, and nothing else.
create function item_{variant}_log() returns trigger
language plpgsql
as $$
begin
    insert into {variant}_log ({columns}) values ({values});
    return null;
end
$$;
create trigger log_change after insert or update or delete on item_{variant} for each row execute function item_{variant}_log();
create trigger log_change after insert or update or delete on document_{variant} for each row execute function item_{variant}_log();
