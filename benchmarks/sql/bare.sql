-- A plain trigger that inserts one constant row into a copy of our log: what the row and its indexes cost, and nothing else.
create function item_{variant}_log() returns trigger
language plpgsql
as $$
begin
    insert into {variant}_log (
        occurred_at, tx_id, actor_id, actor_label, org_id, org_label, auth_method, api_key_id, action, resource_type, resource_id,
        outcome, diff, metadata, ip, country, user_agent, correlation_id, db_user, application_name
    ) values (
        now(), 1000, {actor_id}, {actor_label}, 'org_1', {org_label}, {auth_method}, null, 'item.updated', 'item', '1',
        'succeeded', '[{{"op": "replace", "path": "/name", "old": "item number 1", "value": "renamed 123456789"}}]',
        '{{"label": "renamed 123456789"}}', {ip}, {country}, {user_agent}, {correlation_id}, 'bench_app', 'pgbench'
    );
    return null;
end
$$;
create trigger log_change after insert or update or delete on item_{variant} for each row execute function item_{variant}_log();
create trigger log_change after insert or update or delete on document_{variant} for each row execute function item_{variant}_log();
