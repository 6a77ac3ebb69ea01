-- What a change means: rules as rows, compiled into each table's trigger by attach().

create table pgaudit_wf.action_rule (
    id bigint generated always as identity primary key,
    resource_type text not null,
    op text not null,
    condition text,
    action text not null,
    position integer not null default 100,
    constraint action_rule_op check (op in ('insert', 'update', 'delete')),
    constraint action_rule_action check (action <> '' and length(action) <= 128),
    constraint action_rule_condition check (condition <> '')
);
comment on table pgaudit_wf.action_rule is
    'Names for changes: the first rule of the resource type and op, by (position, id), whose condition is true gives the action; '
    'without one it is <resource_type>.created, .updated or .deleted. Takes effect at once on attached tables.';
comment on column pgaudit_wf.action_rule.id is 'Number of the rule.';
comment on column pgaudit_wf.action_rule.resource_type is 'Resource type of the tables the rule is for, as given to attach().';
comment on column pgaudit_wf.action_rule.op is 'insert, update or delete.';
comment on column pgaudit_wf.action_rule.condition is
    'Boolean SQL expression over new (insert), old and new (update) or old (delete); null is always true. '
    'Functions and operators outside pg_catalog need their schema.';
comment on column pgaudit_wf.action_rule.action is 'Action to record, such as invoice.paid.';
comment on column pgaudit_wf.action_rule.position is 'Rules are tried from the lowest position up.';

create function pgaudit_wf._check_action_rule(target regclass, rule pgaudit_wf.action_rule) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
-- DDL elsewhere checks rules, too, and must not wait for whoever alters this table, and so checks them as well.
set lock_timeout = '1ms'
as $$
declare
    -- A trigger does not see virtual generated columns: so this row has none, and a condition over one does not compile.
    row_of constant text := (
        select case
            when count(*) filter (where attgenerated = 'v') = 0 then _check_action_rule.target::text
            else format('(select %s from %s)',
                string_agg(quote_ident(attname), ', ' order by attnum) filter (where attgenerated <> 'v'), _check_action_rule.target)
        end
        from pg_attribute where attrelid = _check_action_rule.target and attnum > 0 and not attisdropped);
begin
    if (_check_action_rule.rule).condition is null
        -- A caller without USAGE on the table's schema cannot check: the trigger then finds out.
        or not has_schema_privilege((select relnamespace from pg_class where oid = _check_action_rule.target), 'usage') then
        return;
    end if;
    -- It has to stand alone (in parentheses), and where the trigger puts it. The line break keeps a trailing comment in the
    -- condition from hiding the rest. Prepared, not run: so nothing of it is evaluated, and no right to read the table is needed.
    execute format('prepare pgaudit_wf_rule as select case when %2$s%3$s then true end from %1$s where (%2$s%3$s)',
        case (_check_action_rule.rule).op
            when 'insert' then format('%s as new', row_of)
            when 'update' then format('%1$s as old, %1$s as new', row_of)
            when 'delete' then format('%s as old', row_of)
        end,
        (_check_action_rule.rule).condition, e'\n');
    deallocate pgaudit_wf_rule;
    -- So that the lock on the table is let go of.
    raise exception using errcode = 'transaction_rollback';
exception
    when transaction_rollback or lock_not_available then
        return;
    when others then
        raise exception 'action rule % (% of % is %) does not compile for %: %',
            (_check_action_rule.rule).id, (_check_action_rule.rule).op, (_check_action_rule.rule).resource_type,
            (_check_action_rule.rule).action, _check_action_rule.target, sqlerrm
            using errcode = 'PA003',
                detail = format('Its condition is: %s', (_check_action_rule.rule).condition),
                hint = 'A condition is a boolean expression over old and new (insert: only new, delete: only old); '
                    'name functions and types outside pg_catalog with their schema.'
                    || case when row_of like '(%'
                        then ' Virtual generated columns are computed when read and cannot be named: write out what they compute.'
                        else '' end;
end
$$;
comment on function pgaudit_wf._check_action_rule(regclass, pgaudit_wf.action_rule) is
    'Raises PA003 with the rule''s text if its condition is not a boolean expression over the table''s old and new row.';

create function pgaudit_wf.broken_rules() returns table (target regclass, rule_id bigint, problem text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    pair record;
begin
    for pair in
        select a.target, r as rule from pgaudit_wf.attachment as a join pgaudit_wf.action_rule as r on r.resource_type = a.resource_type
        where r.condition is not null and exists (select from pg_class where oid = a.target)
        order by a.target::oid, r.position, r.id
    loop
        begin
            perform pgaudit_wf._check_action_rule(pair.target, pair.rule);
        exception
            when sqlstate 'PA003' then
                target := pair.target;
                rule_id := (pair.rule).id;
                problem := sqlerrm;
                return next;
        end;
    end loop;
end
$$;
comment on function pgaudit_wf.broken_rules() is
    'Rules that once compiled and no longer do, because a type, an enum label, a function or a column that they name is gone: '
    'changes are still recorded, but not under the rule''s action.';
