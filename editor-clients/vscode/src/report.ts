/** What a bug report needs: of one answer, and of the whole set-up. Never the document. */

import * as childProcess from 'node:child_process';
import * as os from 'node:os';
import { promisify } from 'node:util';
import * as vscode from 'vscode';
import type { Answer } from './answers';
import type { Daemon } from './daemon';
import { folders } from './document';
import { METHOD, PROTOCOL_VERSION, type Status } from './protocol';
import { section } from './settings';

const execFile = promisify(childProcess.execFile);

/** One answer, its versions and its model. What was selected is text of the user's: only its length is told. */
export function answerReport(answer: Answer, daemon: Daemon, version: string): string {
  const { result, problem } = answer;
  const model = daemon.status?.model;
  const lines = [
    `**Question**: ${answer.question}`,
    ...(answer.selection ? [`(with ${answer.selection.text.length} characters selected)`] : []),
    '',
    `**Answer** (${result ? result.finishReason : answer.state}): ${answer.text}`,
    '',
    ...(problem ? [`- failed: ${withoutPaths(problem.message)}${problem.reason ? ` (${problem.reason})` : ''}`] : []),
    ...(result
      ? [
          `- model: ${result.model.name}, quantization ${result.model.quantization}${model ? `, ${model.device}, ${model.dtype}` : ''}`,
          `- document: version ${result.document.version}, ${result.document.tokens} tokens, ${result.snapshot}`,
          `- tokens: ${JSON.stringify(result.tokens)}, at most ${answer.maxNewTokens ?? 'as set'}; milliseconds: ${JSON.stringify(result.milliseconds)}`,
          `- citations: ${result.citations.map(({ answerRange, location: { range } }) => `${answerRange.join('–')} at line ${range.start.line + 1}`).join('; ') || 'none'}`,
        ]
      : []),
    ...versions(daemon, version),
  ];
  return lines.join('\n');
}

/** The set-up: versions, where the daemon is, its state, what it finds on this machine. */
export async function debugInformation(daemon: Daemon, version: string): Promise<string> {
  const { found, problem, said } = daemon;
  const lines = [
    '# cag-daemon: debug information',
    '',
    'It names folders of this machine: read it before you pass it on.',
    '',
    ...versions(daemon, version),
  ];
  lines.push(`- program: ${found ? `${found.command} (${found.where})` : 'not found'}`);
  lines.push(`- features: ${said.features?.join(', ') ?? 'unknown'}`);
  if (problem !== undefined) {
    lines.push(`- problem: ${problem.message}`);
  }
  const set = Object.fromEntries(Object.entries(section()).filter(([, value]) => value !== null));
  lines.push(`- settings: ${JSON.stringify(set)}`, `- workspace: ${vscode.workspace.isTrusted ? 'trusted' : 'not trusted'}`);
  if (daemon.running) {
    const status = await daemon.request<Status>(METHOD.status).catch((error: unknown) => String(error));
    lines.push('', '## Status', '', '```json', JSON.stringify(status, null, 2), '```');
  }
  if (found) {
    lines.push('', '## cag-daemon doctor', '', '```', await doctor(found.command), '```');
  }
  return `${lines.join('\n')}\n`;
}

async function doctor(command: string): Promise<string> {
  try {
    const { stdout } = await execFile(command, ['doctor'], { timeout: 60_000, cwd: os.homedir() });
    return stdout.trim();
  } catch (error) {
    const { stdout, message } = error as { stdout?: string; message: string };
    return stdout?.trim() ?? message;
  }
}

function versions({ said }: Daemon, version: string): string[] {
  return [
    `- cag-daemon ${said.version ?? '(unknown)'}, protocol ${said.protocolVersion ?? '(unknown)'}; extension ${version}, protocol ${PROTOCOL_VERSION}`,
    `- ${vscode.env.appName} ${vscode.version}, ${os.platform()} ${os.arch()}${vscode.env.remoteName ? `, remote (${vscode.env.remoteName})` : ''}`,
  ];
}

/** Folders tell names of people and projects. The known ones go first: there may be spaces in them. */
function withoutPaths(message: string): string {
  const known = [...folders().map((folder) => folder.uri.fsPath), os.homedir()];
  for (const folder of known) {
    message = message.replaceAll(folder, '…');
  }
  return message.replace(/(?:[A-Za-z]:)?[/\\][^\s:,;]*[/\\]([^\s:,;/\\]+)/g, '…/$1');
}
