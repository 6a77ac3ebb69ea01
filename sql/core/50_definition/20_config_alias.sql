-- Spellings of configuration keys that older editors saved. As rows, so that an application with a history of its own adds
-- its renames without touching a function.

create table pgaudit_wf.config_alias (
    alias text primary key check (alias <> ''),
    canonical_name text check (canonical_name <> alias)
);
comment on table pgaudit_wf.config_alias is
    'Keys of a node''s data.config that normalize_definition() reads under another name or not at all. '
    'A change here changes the hashes of later versions: a definition that uses the alias gets a new version at its next save, '
    'and old hashes stay as they are.';
comment on column pgaudit_wf.config_alias.alias is 'The key as it may be found in data.config.';
comment on column pgaudit_wf.config_alias.canonical_name is
    'The key it stands for; null: the key means nothing and is dropped. Where the canonical key is there too, its value wins. '
    'A canonical name is final: it is not looked up as an alias again.';

insert into pgaudit_wf.config_alias (alias, canonical_name) values
    ('args', 'functionArgs'),
    ('abiFunctionKey', null);

create function pgaudit_wf._normalize_config(config jsonb) returns jsonb
language sql stable strict parallel safe
return (
    select coalesce(
            (select jsonb_object_agg(canonical_name, value) from (
                -- Two aliases of one name: the first in byte order wins.
                select distinct on (config_alias.canonical_name)
                    config_alias.canonical_name, _normalize_config.config -> config_alias.alias as value
                from pgaudit_wf.config_alias
                where config_alias.canonical_name is not null and _normalize_config.config ? config_alias.alias
                order by config_alias.canonical_name, config_alias.alias collate "C"
            ) as renamed),
            '{}')
        || (_normalize_config.config - coalesce((select array_agg(config_alias.alias) from pgaudit_wf.config_alias), '{}'))
);
comment on function pgaudit_wf._normalize_config(jsonb) is
    'A node''s configuration object under the canonical names of config_alias, ignored keys dropped. Values stay as they are.';
