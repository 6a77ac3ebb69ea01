-- Names and notes that people give versions: a named version is kept whatever the policy says.

create table pgaudit_wf.version_label (
    id bigint generated always as identity primary key,
    workflow_id text not null,
    version integer not null,
    org_id text,
    label text not null,
    note text,
    created_at timestamptz not null default clock_timestamp(),
    constraint version_label_label check (length(label) between 1 and 200),
    constraint version_label_note check (length(note) <= 4000)
);
comment on table pgaudit_wf.version_label is
    'Names of versions, append-only: the newest row of a version counts. Written by label_version(); read workflow_timeline.';
comment on column pgaudit_wf.version_label.id is 'In the order in which the names were given.';
comment on column pgaudit_wf.version_label.workflow_id is 'The workflow, as in workflow_history.';
comment on column pgaudit_wf.version_label.version is 'Number of the version.';
comment on column pgaudit_wf.version_label.org_id is 'Organization of the workflow.';
comment on column pgaudit_wf.version_label.label is 'The name, such as "as delivered".';
comment on column pgaudit_wf.version_label.note is 'What there is to say about it; null for nothing.';
comment on column pgaudit_wf.version_label.created_at is 'When it was given; who did so is in the log.';

create index version_label_version on pgaudit_wf.version_label (workflow_id, version);

create trigger append_only before update or delete or truncate on pgaudit_wf.version_label
    for each statement execute function pgaudit_wf._refuse_change();
alter table pgaudit_wf.version_label enable always trigger append_only;

alter table pgaudit_wf.version_label enable row level security;
create policy readable_org on pgaudit_wf.version_label for select using (org_id = (select pgaudit_wf._readable_history_org()));

create function pgaudit_wf.label_version(workflow_id text, version integer, label text, note text default null) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    label constant text := btrim(label_version.label);
    note constant text := nullif(btrim(label_version.note), '');
    kept pgaudit_wf.workflow_history;
    place record;
    before jsonb;
begin
    if coalesce(length(label), 0) not between 1 and 200 or length(note) > 4000 then
        raise exception 'a label must have 1 to 200 characters, and a note at most 4,000' using errcode = 'PA008';
    end if;
    perform pgaudit_wf._unpack_context();
    kept := pgaudit_wf._version_for_note(label_version.workflow_id, coalesce(label_version.version, 0));
    if kept.pruned_at is not null then
        raise exception 'the snapshot of version % of workflow % was pruned', label_version.version, label_version.workflow_id
            using errcode = 'PA344', hint = 'A label keeps a version from being pruned; this one is gone already.';
    end if;
    before := (
        select jsonb_build_object('label', l.label, 'note', l.note) from pgaudit_wf.version_label as l
        where l.workflow_id = label_version.workflow_id and l.version = label_version.version order by l.id desc limit 1);
    insert into pgaudit_wf.version_label (workflow_id, version, org_id, label, note)
    values (label_version.workflow_id, label_version.version, kept.org_id, label, note);
    select w.target, w.row_id into place from pgaudit_wf._find_workflow(label_version.workflow_id, null) as w;
    perform pgaudit_wf._record_version_note(place.target, place.row_id, kept.org_id, '.version_labeled',
        label_version.version, coalesce(before, '{}'), jsonb_build_object('label', label, 'note', note));
end
$$;
comment on function pgaudit_wf.label_version(text, integer, text, text) is
    'Gives a version of a workflow a name and a note, instead of an earlier one; prune_history() never drops a version that has one. '
    'Recorded as <resource_type>.version_labeled. '
    'Raises PA008 on a label that is empty or longer than 200 characters, or a note longer than 4,000, '
    'PA302 if there is no such version in the organization app.org_id, PA344 if its snapshot was pruned.';
