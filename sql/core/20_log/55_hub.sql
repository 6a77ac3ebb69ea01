-- A hub: a database that logical replication brings the logs of others ("nodes") into. Empty tables and functions that nothing calls
-- elsewhere: the triggers are made by _become_hub().
--
-- Ids: the hub gave each node a number, which the high bits (from 2^44) of the node's ids are from then on; to events from before, the
-- hub adds it when they arrive. So every id on the hub is unique and says its node, and stays below 2^53, which JSON readers keep exact.
--
-- Order: a transaction of a node is one of the hub, and its events get the hub's transaction id when they are applied. So read_log() and
-- everything that goes by (tx_id, id) works here as it does on a node, in the order of arrival.

create table pgaudit_wf.hub_node (
    number integer primary key,
    name text not null unique,
    hub_cluster bigint not null,
    added_at timestamptz not null default now(),
    removed_at timestamptz,
    constraint hub_node_number check (number between 1 and 511),
    constraint hub_node_name check (name ~ '^[a-z][a-z0-9_-]{0,39}$')
);
comment on table pgaudit_wf.hub_node is
    'On a hub: the databases whose logs come here, made by pgaudit-wf hub add. A node that was removed keeps its number. Else empty.';
comment on column pgaudit_wf.hub_node.number is 'Number of the node: its events'' ids divided by 2^44.';
comment on column pgaudit_wf.hub_node.name is 'Its name.';
comment on column pgaudit_wf.hub_node.hub_cluster is
    'Cluster that the hub was in then: a hub cannot move, as arrival is numbered by its transactions.';
comment on column pgaudit_wf.hub_node.added_at is 'When its log began to come here.';
comment on column pgaudit_wf.hub_node.removed_at is 'When pgaudit-wf hub remove ended that; null: it still comes.';

create function pgaudit_wf.event_node(event_id bigint) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select n.name from pgaudit_wf.hub_node as n where n.number = event_node.event_id >> 44 $$;
comment on function pgaudit_wf.event_node(bigint) is
    'On a hub: name of the node that an event came from, by its id; null for the hub''s own events, and where there is no hub.';

create function pgaudit_wf._arriving_from() returns integer
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A session that merely sets session_replication_role has no subscription.
    -- Asked about one subscription, the function shows only the first of its workers.
    select n.number
    from pg_stat_get_subscription(null) as worker
    join pg_subscription as s on s.oid = worker.subid
    join pgaudit_wf.hub_node as n on s.subname = 'pgaudit_wf_hub_' || n.number
    where worker.pid = pg_backend_pid() and s.subdbid = (select d.oid from pg_database as d where d.datname = current_database())
$$;
comment on function pgaudit_wf._arriving_from() is
    'Number of the node whose log this worker of a subscription brings; null for anyone else.';

create function pgaudit_wf._arrive() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    node constant integer := pgaudit_wf._arriving_from();
begin
    if node is null then
        if pgaudit_wf._is_applied() then
            raise exception 'this is a hub, and the subscription that brings a log here is not of pgaudit-wf hub add'
                using errcode = 'PA013', hint = 'Drop the subscription, and call pgaudit-wf hub add.';
        end if;
        return new;
    end if;
    if new.id >> 44 = 0 then
        new.id := new.id + (node::bigint << 44);
    elsif new.id >> 44 <> node then
        raise exception 'event % is of node %, and comes from node %', new.id, new.id >> 44, node
            using errcode = 'PA013', hint = 'A node cannot be a hub, or go on with another''s log: remove it, pgaudit-wf hub remove.';
    end if;
    -- A node that is added again sends everything again.
    if exists (
        select from pgaudit_wf.security_audit_log as l
        where l.action = new.action and l.occurred_at = new.occurred_at and l.id = new.id)
    then
        return null;
    end if;
    new.tx_id := txid_current();
    return new;
end
$$;
comment on function pgaudit_wf._arrive() is
    'Trigger of a hub''s log for what a node''s subscription applies: the id gets the node''s number, the event its place in the order '
    'of arrival. Skips what is here already; raises PA013 for an id of another node.';

create function pgaudit_wf._arrive_version() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    present record;
begin
    if pgaudit_wf._arriving_from() is null then
        return new;
    end if;
    select h.content_hash, h.created_at into present from pgaudit_wf.workflow_history as h
    where h.workflow_id = new.workflow_id and h.version = new.version;
    if found then
        if (present.content_hash, present.created_at) is distinct from (new.content_hash, new.created_at) then
            raise exception 'version % of workflow "%" is here from another node', new.version, new.workflow_id
                using errcode = 'PA013',
                    hint = 'Workflows of nodes need ids that differ: pgaudit-wf hub remove, then hub add --without-versions.';
        end if;
        return null;
    end if;
    new.tx_id := txid_current();
    return new;
end
$$;
comment on function pgaudit_wf._arrive_version() is
    'Trigger of a hub''s workflow_history for what a node''s subscription applies, as _arrive(); raises PA013 where two nodes have '
    'the same workflow id.';

create function pgaudit_wf._arrive_label() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    node constant integer := pgaudit_wf._arriving_from();
begin
    if node is null then
        return new;
    end if;
    new.id := new.id + (node::bigint << 44);
    return case when not exists (select from pgaudit_wf.version_label as v where v.id = new.id) then new end;
end
$$;
comment on function pgaudit_wf._arrive_label() is
    'Trigger of a hub''s version_label for what a node''s subscription applies, as _arrive().';

create function pgaudit_wf._become_hub() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from pg_trigger where tgrelid = 'pgaudit_wf.security_audit_log'::regclass and tgname = 'arrive') then
        create trigger arrive before insert on pgaudit_wf.security_audit_log for each row execute function pgaudit_wf._arrive();
        alter table pgaudit_wf.security_audit_log enable replica trigger arrive;
        create trigger arrive before insert on pgaudit_wf.workflow_history for each row execute function pgaudit_wf._arrive_version();
        alter table pgaudit_wf.workflow_history enable replica trigger arrive;
        create trigger arrive before insert on pgaudit_wf.version_label for each row execute function pgaudit_wf._arrive_label();
        alter table pgaudit_wf.version_label enable replica trigger arrive;
        perform pgaudit_wf._note_installed('trigger arrive on ');
    end if;
end
$$;
comment on function pgaudit_wf._become_hub() is 'Makes the triggers of a hub, once; for pgaudit-wf hub add.';

create function pgaudit_wf._become_node(number integer) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    given bigint;
begin
    select s.last_value into given from pgaudit_wf.security_audit_log_id_seq as s;
    if given >> 44 = _become_node.number then
        return given;
    end if;
    if given >> 44 <> 0 then
        raise exception 'this log is that of node %', given >> 44
            using errcode = 'PA013', hint = 'A node keeps its number, as its events have it in their ids.';
    end if;
    -- The hub adds the number to older ids: what others take from the sequence right now must not meet ids given after this.
    return setval('pgaudit_wf.security_audit_log_id_seq', (_become_node.number::bigint << 44) + given + 1000000);
end
$$;
comment on function pgaudit_wf._become_node(integer) is
    'Lets ids of events begin with the number of a node from now on; those that were given stay. Raises PA013 where the log has another.';
